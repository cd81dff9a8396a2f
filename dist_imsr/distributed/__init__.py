"""Who owns which bytes: item rows, users, dense weights. Knows no strategy."""

import os

import torch

# What DeepSpeed would find by itself, with a warning on every rank.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

"""Who owns which bytes: item rows, users, dense weights. Knows no strategy."""

import os

from dist_imsr import devices

# What DeepSpeed would find by itself, with a warning on every rank.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if devices.device_count() else "cpu")

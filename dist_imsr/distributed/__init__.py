"""Item rows, users and dense weights over the ranks. Knows no strategy."""

import os

from dist_imsr import devices

# DeepSpeed would find this by itself, with a warning on every rank.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if devices.device_count() else "cpu")

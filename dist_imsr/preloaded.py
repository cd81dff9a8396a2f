"""Imports everything that ranks import sooner or later, for the server process that they are forked from."""

import gc
import importlib

for name in ("dist_imsr.training.run", "torch.utils.tensorboard", "pandas"):
    importlib.import_module(name)
gc.freeze()  # else the garbage collector of a rank would touch, and so copy, all of these pages

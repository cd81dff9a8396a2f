"""What ranks import, and what their libraries import when first used: for the process that they are forked from."""

import gc
import importlib

for name in ("dist_imsr.training.run", "torch.utils.tensorboard", "pandas"):
    importlib.import_module(name)
gc.freeze()  # or a rank's collector would copy all of it to look at it

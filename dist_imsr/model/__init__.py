"""Pure PyTorch that reads like the equations: no process group, no file, no user id."""

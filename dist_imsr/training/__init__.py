"""The span loop, checkpoints and runs."""

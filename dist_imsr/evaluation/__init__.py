"""Exact ranks over the whole catalogue, and metrics computed from them."""

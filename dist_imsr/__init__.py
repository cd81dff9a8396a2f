"""Distributed training of multi-interest sequential recommenders, span by span (IMSR, ICDE 2023)."""

__version__ = "0.1.0"

"""Texts, paths and names as DuckDB's SQL writes them."""

import glob
from pathlib import Path


def quoted(text: str) -> str:
    """A string literal."""
    return "'" + text.replace("'", "''") + "'"


def quoted_path(path: Path) -> str:
    """A string literal for DuckDB's readers, which would otherwise expand ``*`` and ``[``."""
    return quoted(glob.escape(str(path)))

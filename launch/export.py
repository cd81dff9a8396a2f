"""Exports item embeddings and interests with raw ids, and a FAISS index of the items with its recall."""

import sys

from dist_imsr.config import parse
from dist_imsr.console import output_console
from dist_imsr.distributed.command import run
from dist_imsr.evaluation.index import ExportConfig, export_run


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit status, 2 if the run, its data or FAISS are missing."""
    config = parse(ExportConfig, argv, description=__doc__)

    def work() -> None:
        output_console().print(export_run(config), highlight=False, soft_wrap=True)

    return run("export.py", work, "interrupted; nothing was written")


if __name__ == "__main__":
    sys.exit(main())

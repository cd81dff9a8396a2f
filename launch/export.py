"""Exports item embeddings and interests with raw ids, and a FAISS index of the items with its recall."""

import sys

from dist_imsr.checks import require
from dist_imsr.config import parse
from dist_imsr.console import output_console
from dist_imsr.distributed.command import run
from dist_imsr.distributed.topology import connect, read_topology
from dist_imsr.evaluation.finished import FinishedRun
from dist_imsr.evaluation.index import ExportConfig, export, require_faiss


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit status, 2 if the run, its data or FAISS are missing."""
    config = parse(ExportConfig, argv, description=__doc__)

    def work() -> None:
        require_faiss()
        require(
            read_topology().world_size == 1,
            "ranks",
            read_topology().world_size,
            "one: an index lives on one machine; use python",
        )
        finished = FinishedRun(config.run_dir, config.data)
        done = export(config, finished, finished.resolve_span(config.span), connect())
        recall = f"recall@{config.top}"
        output_console().print(
            f"{config.output}: {done['items']:,} items, {done['interests']:,} interests of {done['users']:,} users "
            f"after span {done['span']}; the index finds {done[recall]:.4f} of the exact top {config.top} "
            f"({done['sampled_users']:,} users)",
            highlight=False,
            soft_wrap=True,
        )

    return run("export.py", work, "interrupted; nothing was written")


if __name__ == "__main__":
    sys.exit(main())

"""Writes item embeddings and interests with raw ids, and a FAISS index of the items with its recall."""

import sys

from dist_imsr.checks import require
from dist_imsr.config import parse
from dist_imsr.console import output_console
from dist_imsr.distributed.command import run
from dist_imsr.distributed.topology import connect, read_topology
from dist_imsr.evaluation.finished import FinishedRun
from dist_imsr.evaluation.index import ExportConfig, export, require_faiss


def main(argv: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: the arguments.

    Returns:
        The exit status; 2 where the run, its data or FAISS are missing.
    """
    config = parse(ExportConfig, argv, description=__doc__)

    def work() -> None:
        require_faiss()
        ranks = read_topology().world_size
        require(ranks == 1, "ranks", ranks, "one: an index lives on one machine; use python")
        finished = FinishedRun(config.run_dir, config.data)
        told = export(config, finished, finished.resolve_span(config.span), connect())
        recall = f"recall@{config.top}"
        output_console().print(
            f"{config.output}: {told['items']:,} items, {told['interests']:,} interests of {told['users']:,} users "
            f"after span {told['span']}; the index finds {told[recall]:.4f} of the exact top {config.top} "
            f"({told['sampled_users']:,} users)",
            highlight=False,
            soft_wrap=True,
        )

    return run("export.py", work, "interrupted; nothing was written")


if __name__ == "__main__":
    sys.exit(main())

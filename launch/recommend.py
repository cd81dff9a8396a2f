"""Writes each user's top items of the whole catalogue, with raw ids, to a Parquet file.

On one rank: ``python launch/recommend.py ...``; on two: ``deepspeed --num_accelerators 2 launch/recommend.py ...``.
"""

import logging
import sys

from dist_imsr.config import parse
from dist_imsr.distributed.command import run
from dist_imsr.evaluation.recommend import RecommendConfig, write_recommendations


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit status, 2 if the run, its data or its users are missing."""
    config = parse(RecommendConfig, argv, description=__doc__)

    def work() -> None:
        logging.getLogger("dist_imsr").info(write_recommendations(config).describe(config))

    return run("recommend.py", work, "interrupted; nothing was written")


if __name__ == "__main__":
    sys.exit(main())

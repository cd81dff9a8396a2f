"""Tests baselines that count, or factorise, on each span with the users and the metrics of a run's tests.

Example: ``python launch/baselines.py --data.path data/taobao --baselines popular own_history item_knn ials``. On two
ranks, for popular and own_history: ``deepspeed --num_accelerators 2 launch/baselines.py ...``.
"""

import sys

from dist_imsr.baselines.config import BaselinesConfig, run_baselines
from dist_imsr.baselines.report import show
from dist_imsr.config import parse
from dist_imsr.distributed.command import run
from dist_imsr.launcher import rank_info


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit status, 2 if the data are missing or too large for a baseline."""
    config = parse(BaselinesConfig, argv, description=__doc__)

    def work() -> None:
        lines = run_baselines(config)
        if rank_info().rank == 0:
            show(lines, config.eval.top, f"{config.data.path}: baselines")

    return run("baselines.py", work, "interrupted; nothing was written")


if __name__ == "__main__":
    sys.exit(main())

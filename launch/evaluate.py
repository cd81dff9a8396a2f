"""Evaluates a finished run: tests its exported spans anew, or compares them with planted truth (--drift_truth true).

Alone: ``python launch/evaluate.py ...``; on several ranks: ``deepspeed --num_accelerators 2 launch/evaluate.py ...``.
"""

import json
import sys

from rich.table import Table

from dist_imsr.config import parse
from dist_imsr.console import output_console
from dist_imsr.distributed.command import run
from dist_imsr.distributed.topology import connect
from dist_imsr.evaluation.finished import FinishedRun
from dist_imsr.evaluation.planted import compare_with_truth
from dist_imsr.evaluation.retest import EvaluateConfig, retest, spans_to_test
from dist_imsr.training.progress import Reporter


def main(argv: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: the arguments.

    Returns:
        The exit status; 2 where the run, its data or its exported spans are missing.
    """
    config = parse(EvaluateConfig, argv, description=__doc__)

    def work() -> None:
        finished = FinishedRun(config.run_dir)
        if config.drift_truth:
            return _tell(config, compare_with_truth(finished, config.match_cosine), "found against planted")
        spans = spans_to_test(config, finished)
        topology = connect(config.timeout_seconds)
        reporter = Reporter(topology.rank == 0)
        rows = retest(
            config, finished, spans, topology, lambda *steps: reporter.moved(steps[0], topology.device, *steps[1:])
        )
        if topology.rank == 0:
            _tell(config, rows, "each span tested on the next")
        return None

    return run("evaluate.py", work, "interrupted; nothing was written")


def _tell(config: EvaluateConfig, rows: list[dict[str, float | int | None]], title: str) -> None:
    if config.json:
        config.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = Table(*rows[0], title=f"{config.run_dir}: {title}")
    for row in rows:
        table.add_row(*("" if value is None else _shown(value) for value in row.values()))
    output_console().print(table)


def _shown(value: float | int) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


if __name__ == "__main__":
    sys.exit(main())

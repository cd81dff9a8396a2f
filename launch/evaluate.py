"""Evaluates a finished run: tests its exported spans again, or compares them with planted truth (--drift_truth true).

On one rank: ``python launch/evaluate.py ...``; on two: ``deepspeed --num_accelerators 2 launch/evaluate.py ...``.
"""

import json
import sys

from rich.table import Table

from dist_imsr.config import parse
from dist_imsr.console import output_console
from dist_imsr.distributed.command import run
from dist_imsr.evaluation.retest import EvaluateConfig, evaluate_run
from dist_imsr.files import write_whole
from dist_imsr.launcher import rank_info


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit status, 2 if the run, its data or its exported spans are missing."""
    config = parse(EvaluateConfig, argv, description=__doc__)

    def work() -> None:
        rows = evaluate_run(config)
        if rank_info().rank == 0:
            _report(config, rows)

    return run("evaluate.py", work, "interrupted; nothing was written")


def _report(config: EvaluateConfig, rows: list[dict[str, float | int | None]]) -> None:
    table = Table(
        "span",
        *(str(row["span"]) for row in rows),
        title=f"{config.run_dir}{': without seen items' * config.eval.exclude_seen}",
    )
    for name in list(rows[0])[1:]:
        values = (row[name] for row in rows)
        table.add_row(
            name,
            *("" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}" for value in values),
        )
    output_console().print(table)
    if config.json:
        write_whole(config.json, "".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    sys.exit(main())

"""Writes one HTML page with all figures of runs and comparisons; it opens offline in any browser.

Example: ``python launch/report.py --runs runs/demo/imsr runs/demo/fine_tuning --output runs/demo/report.html``. Runs
that were trained with ``--training.export every`` and ``--eval.per_user true`` have all figures. One figure for a
paper: ``--figure NAME --format pdf --output NAME.pdf``.
"""

import sys

from rich.console import Console

from dist_imsr.config import parse
from dist_imsr.console import run_writer
from dist_imsr.distributed.topology import quiet_libraries
from dist_imsr.report.config import ReportConfig


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit status, 2 if an input is missing, 130 after Ctrl-C."""
    config = parse(ReportConfig, argv, description=__doc__)
    quiet_libraries()

    def work(console: Console) -> None:
        try:
            from dist_imsr.report.report import write_report  # needs the extra
        except ModuleNotFoundError as error:
            raise ValueError(f"{error.name} is not installed: pip install 'dist-imsr[report]'") from error
        write_report(config, console)

    return run_writer("report.py", work, lambda: f"{config.output} is complete, or what it was")


if __name__ == "__main__":
    sys.exit(main())

"""Compares strategies over base models, seeds and data sets: tunes, trains what is missing, writes tables and a page.

Example: ``python launch/compare.py --config configs/compare_full.yaml``. The same command resumes after a stop.
"""

import sys
from pathlib import Path

from rich.console import Console

from dist_imsr.comparison.compare import compare
from dist_imsr.comparison.config import CompareConfig
from dist_imsr.config import parse
from dist_imsr.distributed.command import FAILED
from dist_imsr.report.config import ReportConfig


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit status of the comparison, whatever becomes of its page."""
    config = parse(CompareConfig, argv, description=__doc__)
    status = compare(config)
    if status in (0, FAILED) and (config.output / "summary.parquet").is_file():  # else it was stopped or refused
        _write_page(config.output)
    return status


def _write_page(folder: Path) -> None:
    page = folder / "report.html"
    try:
        from dist_imsr.report.report import write_report  # needs the extra

        write_report(ReportConfig(output=page, compare=folder), Console(stderr=True))
    except ModuleNotFoundError as error:
        print(f"compare.py: no {page}: {error.name} is missing, pip install 'dist-imsr[report]'", file=sys.stderr)
    except Exception as error:  # the tables are written, and the status is theirs
        print(f"compare.py: no {page}: {type(error).__name__}: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

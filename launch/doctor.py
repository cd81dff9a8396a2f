"""Looks over this installation and says how to mend what is off.

Exits with status 1 when something is off. It needs nothing installed, rich included.
"""

import argparse
import sys
from pathlib import Path

# The doctor must also run where the project itself is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dist_imsr.doctor import Report, examine


def show(report: Report) -> None:
    """Prints a report: a table of the facts, then one line for each thing that is off.

    Args:
        report: what was seen.
    """
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        lines = [f"{name:26} {value}" for name, value in report.facts.items()]
    else:
        table = Table("what", "found")
        for name, value in report.facts.items():
            table.add_row(name, value)
        Console().print(table)
        lines = []
    lines += [f"OFF: {finding.wrong}\n     mend: {finding.mend}" for finding in report.findings]
    lines += [] if report.findings else ["Everything fits."]
    sys.stdout.write("\n".join(lines) + "\n")


def main() -> int:
    """Runs the doctor.

    Returns:
        0 if the installation is sound, 1 otherwise.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds until a library or rank counts as hung")
    report = examine(parser.parse_args().limit)
    show(report)
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())

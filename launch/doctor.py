"""Checks this installation and prints a fix for each problem.

The exit status is 1 if there is a problem. The check itself needs no installed package.
"""

import argparse
import sys
from pathlib import Path

# The doctor must also run if the project itself is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dist_imsr.doctor import Report, examine


def show(report: Report) -> None:
    """Prints a table of the facts, then each problem with its fix."""
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
    lines += [f"PROBLEM: {finding.problem}\n         fix: {finding.fix}" for finding in report.findings]
    lines += [] if report.findings else ["Everything works."]
    sys.stdout.write("\n".join(lines) + "\n")


def main() -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds after which a process counts as hung")
    report = examine(parser.parse_args().limit)
    show(report)
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())

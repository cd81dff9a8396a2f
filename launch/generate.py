"""Generates a raw log of any size with planted drift, in the format of Taobao's UserBehavior.csv."""

import sys

from rich.console import Console

from dist_imsr.config import parse
from dist_imsr.console import run_writer
from dist_imsr.data.generate import GenerateConfig, generate


def main() -> int:
    """Runs the command; returns the exit status of `run_writer`."""
    config = parse(GenerateConfig, description=__doc__)

    def work(console: Console) -> None:
        print(f"{generate(config, console):,} rows written to {config.output}")

    return run_writer("generate.py", work)


if __name__ == "__main__":
    sys.exit(main())

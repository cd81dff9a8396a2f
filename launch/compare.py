"""Compares strategies over base models, seeds and data sets: tunes, trains missing runs, tests and writes tables.

Example: ``python launch/compare.py --config configs/compare_full.yaml``. The same command resumes after a stop.
"""

import sys

from dist_imsr.comparison.compare import compare
from dist_imsr.comparison.config import CompareConfig
from dist_imsr.config import parse

if __name__ == "__main__":
    sys.exit(compare(parse(CompareConfig, description=__doc__)))

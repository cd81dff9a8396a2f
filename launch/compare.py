"""Compares strategies over base models, seeds and data sets: tunes, trains what is missing, tests and tabulates.

``python launch/compare.py --config configs/compare_samples.yaml``; the same command goes on where it stopped.
"""

import sys

from dist_imsr.comparison.compare import compare
from dist_imsr.comparison.config import CompareConfig
from dist_imsr.config import parse

if __name__ == "__main__":
    sys.exit(compare(parse(CompareConfig, description=__doc__)))

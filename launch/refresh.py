"""Appends new interactions to prepared data, tests and trains the run on them, and publishes its results.

Example: ``python launch/refresh.py --config daily.yaml --input day.csv``. The same command continues a refresh
that was stopped or killed. Standard output has one line of JSON: what was done, and why not.
"""

import sys

from dist_imsr.config import parse
from dist_imsr.refresh.config import RefreshConfig
from dist_imsr.refresh.refresh import refresh

if __name__ == "__main__":
    sys.exit(refresh(parse(RefreshConfig, description=__doc__)))

"""Trains a multi-interest recommender span by span and tests it on each next span.

On one rank: ``python launch/train.py ...``; on two: ``deepspeed --num_accelerators 2 launch/train.py ...``.
"""

import sys

from dist_imsr.config import parse
from dist_imsr.training.config import TrainConfig
from dist_imsr.training.run import train

if __name__ == "__main__":
    sys.exit(train(parse(TrainConfig, description=__doc__)))

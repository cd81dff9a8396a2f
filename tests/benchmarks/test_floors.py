import pytest

from dist_imsr.benchmarks.ceilings import COPY, PRODUCT
from dist_imsr.benchmarks.floors import per, step_bound
from dist_imsr.benchmarks.train import TrainBench

FAST = {COPY: 1e30, PRODUCT.format("fp32"): 1e30, PRODUCT.format("bf16"): 1e30}
OPTIONS = TrainBench(items=1000, users=100, batch=10, ranks=1, dim=8, history=5, targets=3, negatives=20, device="cpu")


def test_the_longer_of_both_binds():
    copying = step_bound(OPTIONS)(FAST | {COPY: 1e9})
    assert copying.figure == COPY
    # 10 users of 3 items and 2 targets, and the negatives: their rows, read, read and written with row-wise Adagrad's
    # one number of state, and their gradients.
    rows = (30 + 20 + 20) * (2 * 8 + 2 * (8 + 1) + 8) * 4
    assert rows / 1e9 < copying.seconds < 10 * rows / 1e9
    multiplying = step_bound(OPTIONS)(FAST | {PRODUCT.format("fp32"): 1e9})
    assert multiplying.figure == PRODUCT.format("fp32")
    assert multiplying.seconds >= 3 * 20 * 20 * 8 * 2 / 1e9  # targets by negatives, forward and backward


def test_ranks_share_the_machine():
    slow = FAST | {COPY: 1e9}
    alone, two = (step_bound(one)(slow).seconds for one in (OPTIONS, TrainBench(**vars(OPTIONS) | {"ranks": 2})))
    assert alone < two < 2 * alone  # each of two fetches the negatives for itself


def test_one_of_many():
    bound = per(step_bound(OPTIONS), 10)
    assert bound(FAST).seconds == pytest.approx(step_bound(OPTIONS)(FAST).seconds / 10)

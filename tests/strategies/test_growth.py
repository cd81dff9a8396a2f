import numpy as np
import pytest
import torch

from dist_imsr.strategies.growth import Growth, Histogram
from tests.ranks import run_ranks


@pytest.mark.parametrize("sign", [1, -1])
def test_quantiles_are_right_within_a_bin(sign):
    values = sign * torch.from_numpy(np.random.default_rng(0).lognormal(-3, 2, 5000))
    histogram = Histogram()
    for part in values.split(700):
        histogram.add(part)
    for share in (0.1, 0.5, 0.9):
        assert histogram.quantile(share) == pytest.approx(np.quantile(values, share), rel=0.03, abs=2e-4)


def test_quantiles_of_nothing_and_of_what_lies_outside():
    histogram = Histogram(high=1e3)
    assert histogram.quantile(0.5) is None
    histogram.add(torch.tensor([-0.4, -0.3, -0.2, -0.1, 0.2]))
    assert histogram.quantile(0.1) == pytest.approx(-0.4, rel=0.02)
    assert histogram.quantile(0.5) == pytest.approx(-0.2, rel=0.02)
    histogram.add(torch.tensor([1e9] * 50))
    assert histogram.quantile(0.9) == pytest.approx(1e3, rel=0.02)


def _summed(topology):
    growth = Growth(puzzled=1 + topology.rank, created=3, kept=2, trimmed=1, norm_kept=1.0, detected=1, fit=0.5)
    growth.fit_histogram.add(torch.tensor([0.5]))
    return (growth + Growth(refused=1)).summed(topology).record()


def test_ranks_sum_up():
    for record in run_ranks(2, _summed):
        assert record["puzzled_users"] == 3
        assert (record["interests_created"], record["interests_kept"], record["interests_trimmed"]) == (6, 4, 2)
        assert record["interests_refused"] == 2
        assert record["norm_kept"] == 0.5
        assert record["existing_cosine"] is None
        assert record["fit_mean"] == 0.5
        assert record["fit_p50"] == pytest.approx(0.5, rel=0.02)

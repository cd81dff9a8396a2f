import pytest
import torch
from scipy import stats

from dist_imsr.distributed.keyed_random import normal, uniform


def test_distributions():
    drawn = normal(8, 3, torch.arange(20_000))
    assert stats.kstest(drawn.flatten().numpy(), "norm").pvalue > 1e-3
    even = uniform(8, 3, torch.arange(20_000))
    assert stats.kstest(even.flatten().numpy(), "uniform").pvalue > 1e-3
    neighbours = torch.cat([drawn[:-1], drawn[1:]], 1).T.corrcoef() - torch.eye(16)
    assert neighbours.abs().max() < 0.05


def test_numbers_depend_only_on_keys():
    users = torch.tensor([4, 9, 2])
    whole = normal(7, 1, users, 5)
    assert torch.equal(whole[1:], normal(7, 1, users[1:], 5))
    for other in (normal(7, 2, users, 5), normal(7, 1, users + 1, 5), normal(7, 1, users, 6)):
        assert not torch.isclose(whole, other).any()
    assert whole.isfinite().all()


def test_known_values():
    # Checkpoints and comparisons outlive releases: these numbers must not change.
    assert uniform(2, 0, 1).tolist() == [0.40436124516234584, 0.507130484755419]
    torch.testing.assert_close(normal(2, 0, 1), torch.tensor([-0.05042051151394844, -1.0167101621627808]))


@pytest.mark.cuda
def test_numbers_are_equal_on_all_devices():
    keys = torch.arange(20_000) - 10_000
    assert torch.equal(uniform(5, 3, keys.cuda(), 8).cpu(), uniform(5, 3, keys, 8))  # whole numbers and powers of two
    drawn = normal(5, 3, keys.cuda(), 8).cpu()
    # Its own logarithm and cosine, in float64: float32 numbers differ by one in the last place, if at all.
    torch.testing.assert_close(drawn, normal(5, 3, keys, 8), rtol=2**-22, atol=1e-7)
    assert (drawn != normal(5, 3, keys, 8)).float().mean() < 0.01

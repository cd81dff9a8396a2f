import pytest
import torch

from dist_imsr.distributed.topology import Topology
from tests.ranks import run_ranks


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_every_bucket_has_one_owner(world_size):
    owned = [list(Topology(rank, world_size, 1, torch.device("cpu")).buckets(7)) for rank in range(world_size)]
    assert [bucket for buckets in owned for bucket in buckets] == list(range(7))
    assert max(map(len, owned)) - min(map(len, owned)) <= 1


def test_too_few_buckets_are_refused():
    with pytest.raises(ValueError, match=r"2 buckets .* 3 ranks.*--buckets 3"):
        Topology(0, 3, 3, torch.device("cpu")).buckets(2)


def _collect(topology):
    summed = topology.sum(torch.tensor([1, topology.rank]))
    return summed.tolist(), topology.gather(torch.tensor([[topology.rank]])).tolist()


def test_collectives():
    assert run_ranks(3, _collect) == [([3, 3], [[[0]], [[1]], [[2]]])] * 3

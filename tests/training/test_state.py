from types import SimpleNamespace

import pytest
import torch

from dist_imsr.distributed.interest_store import InterestStore, InterestStoreConfig
from dist_imsr.distributed.topology import Topology
from dist_imsr.strategies.detection import Detection
from dist_imsr.training.state import BucketSlices

BUCKETS, USERS_PER_BUCKET, DIM = 5, 4, 3


def _stores(ranks):
    """An empty store on each of some ranks."""
    return [
        InterestStore.build(
            InterestStoreConfig(),
            BUCKETS,
            USERS_PER_BUCKET,
            DIM,
            2,
            0,
            Topology(rank, ranks, ranks, torch.device("cpu")),
            state_dim=1,
        )
        for rank in range(ranks)
    ]


def _filled(ranks):
    """Stores whose interests depend on the user alone; those of another span come before the snapshot and after it."""
    stores, snapshots = _stores(ranks), []
    for store in stores:
        users = store.owned.users(torch.arange(len(store.counts)))
        store.expand(store.owned.rows(users[users % 3 > 0]), 2, span=0)
        store.slots.states.copy_(store.values[:, :1])
        store.slots.moments.copy_(store.values[:, 1:2])
        snapshots.append(store.snapshot())
        store.expand(store.owned.rows(users[users % 4 == 0]), 1, span=1)
    return stores, snapshots


def _by_user(stores):
    """The rows of all columns of each user."""
    found = {}
    for store in stores:
        users = store.owned.users(torch.arange(len(store.counts))).tolist()
        columns = [column.split(store.counts.tolist()) for column in store.slots]
        found |= {user: [part.tolist() for part in parts] for user, *parts in zip(users, *columns, strict=True)}
    return found


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("others", [1, 2, 3])
def test_any_number_of_ranks_loads_the_interests_of_any_other(ranks, others):
    stores, snapshots = _filled(ranks)
    tables, before = {}, _by_user(stores)
    for store, snapshot in zip(stores, snapshots, strict=True):
        slices = BucketSlices(store.owned)
        tables |= slices.interests("now", store, store.snapshot()) | slices.interests("best", store, snapshot)
        store.slots.values.zero_()  # what is written is a copy
    stored, loaded = SimpleNamespace(table=tables.__getitem__), _stores(others)
    for store in loaded:
        BucketSlices(store.owned).load(stored, "now", SimpleNamespace(store=store))
    assert _by_user(loaded) == before
    assert sum(len(store.values) for store in loaded) > 20
    for store in loaded:
        BucketSlices(store.owned).load(stored, "best", SimpleNamespace(store=store))
        assert not store.birth_span.any()
    assert _by_user(loaded) == {
        user: [column[:2] if user % 3 else [] for column in columns] for user, columns in before.items()
    }


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("others", [1, 2, 3])
def test_any_number_of_ranks_reads_the_detections_of_any_other(ranks, others):
    users, tables = torch.arange(BUCKETS * USERS_PER_BUCKET), {}
    looks = [users, users[users % 2 > 0], users[:0]]
    for store in _stores(ranks):
        mine = [look[store.owned.owns(look)] for look in looks]
        detections = [
            Detection(users=look, fit=look / 7 + number, puzzled=look % 3 > number) for number, look in enumerate(mine)
        ]
        tables |= BucketSlices(store.owned).detections("detections", detections)
    stored = SimpleNamespace(table=tables.__getitem__)
    for store in _stores(others):
        found = BucketSlices(store.owned).read_detections(stored, "detections", len(looks))
        for number, (one, look) in enumerate(zip(found, looks, strict=True)):
            assert torch.equal(one.users, look[store.owned.owns(look)])
            assert torch.equal(one.fit, one.users / 7 + number)
            assert torch.equal(one.puzzled, one.users % 3 > number)

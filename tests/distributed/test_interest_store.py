import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_imsr.distributed.interest_store import InterestStore, InterestStoreConfig
from dist_imsr.distributed.topology import Topology
from dist_imsr.model.interests import Interests

CPU = torch.device("cpu")


def _as_lists(store):
    """A plain-Python view: for every user the vectors and the spans of birth."""
    return [
        (store.values[a:b].tolist(), store.born[a:b].tolist())
        for a, b in zip(store.offsets[:-1].tolist(), store.offsets[1:].tolist(), strict=True)
    ]


expansions = st.lists(st.tuples(st.sets(st.integers(0, 6)), st.integers(1, 3)), max_size=4)


@settings(deadline=None)
@given(expansions)
def test_expand_keeps_what_was_there(steps):
    store = InterestStore(7, 100, 4, seed=3, device=CPU)
    for span, (users, count) in enumerate(steps):
        before = _as_lists(store)
        store.expand(torch.tensor(sorted(users), dtype=torch.int64), count, span)
        for user, ((vectors, born), (old_vectors, old_born)) in enumerate(zip(_as_lists(store), before, strict=True)):
            added = count if user in users else 0
            assert vectors[: len(old_vectors)] == old_vectors
            assert born == old_born + [span] * added
            assert len(vectors) == len(old_vectors) + added
    assert len(store.values) == store.offsets[-1]


@settings(deadline=None)
@given(expansions, st.permutations(range(7)), st.integers(0, 7))
def test_gather_and_scatter_touch_their_users_alone(steps, order, number):
    store = InterestStore(7, 0, 4, seed=3, device=CPU)
    for span, (users, count) in enumerate(steps):
        store.expand(torch.tensor(sorted(users), dtype=torch.int64), count, span)
    before = _as_lists(store)
    rows = torch.tensor(order[:number], dtype=torch.int64)
    found = store.gather(rows)
    for vectors, mask, row in zip(found.vectors, found.mask, rows.tolist(), strict=True):
        assert vectors[mask].tolist() == before[row][0]
        assert not vectors[~mask].any()
    store.scatter(rows, Interests(found.vectors + 1, found.mask))
    for row, ((vectors, _), (old, _)) in enumerate(zip(_as_lists(store), before, strict=True)):
        moved = torch.tensor(old) + (row in rows)
        assert torch.equal(torch.tensor(vectors), moved)


def test_new_interests_depend_on_user_and_slot_alone():
    whole = InterestStore(6, 10, 8, seed=1, device=CPU)
    whole.expand(torch.arange(6), 4, span=0)
    whole.expand(torch.tensor([1, 4]), 2, span=1)
    part = InterestStore(3, 13, 8, seed=1, device=CPU)  # another rank's view of users 13, 14, 15
    part.expand(torch.arange(3), 4, span=0)
    part.expand(torch.tensor([1]), 2, span=1)
    assert _as_lists(whole)[3:] == _as_lists(part)
    other = InterestStore(6, 10, 8, seed=2, device=CPU)
    other.expand(torch.arange(6), 4, span=0)
    assert not torch.isin(other.values, whole.values).any()


def test_build_owns_the_users_of_its_buckets():
    offsets = [0, 3, 3, 8, 10]
    stores = [InterestStore.build(InterestStoreConfig(), offsets, 4, 0, Topology(rank, 2, 2, CPU)) for rank in range(2)]
    assert [(store.first_user, len(store.counts)) for store in stores] == [(0, 3), (3, 7)]

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_imsr import devices
from dist_imsr.data.user_ids import OwnedUsers
from dist_imsr.distributed import columns, slots
from dist_imsr.distributed.interest_store import InterestStore, InterestStoreConfig
from dist_imsr.distributed.topology import Topology
from dist_imsr.model.interests import Interests
from tests.devices import on
from tests.late_copies import late_copies

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def _store(users, dim, seed, query_dim=0, state_dim=0, device="cpu", memory="auto"):
    """A store of the users 2, 5, 8, ..., those of the last of three buckets."""
    owned, place = OwnedUsers(3, range(2, 3)), torch.device(device)
    return InterestStore(InterestStoreConfig(memory), owned, users, dim, query_dim, seed, place, state_dim)


def _scatter(store, rows, interests):
    users = store.owned.users(on("cpu", rows))
    store.scatter(users, interests, store.layout(users, span=0))


def _as_lists(store):
    """For every user, the vectors and the spans of creation, as Python lists."""
    return [
        (store.values[a:b].tolist(), store.birth_span[a:b].tolist())
        for a, b in zip(store.offsets[:-1].tolist(), store.offsets[1:].tolist(), strict=True)
    ]


expansions = st.lists(st.tuples(st.sets(st.integers(0, 6)), st.integers(1, 3)), max_size=4)


@settings(deadline=None)
@given(expansions)
def test_expand_keeps_older_interests(device, steps):
    store = _store(7, 4, seed=3, device=device)
    for span, (users, count) in enumerate(steps):
        before = _as_lists(store)
        store.expand(torch.tensor(sorted(users), dtype=torch.int64), count, span)
        for user, ((vectors, birth_span), (old_vectors, old_birth_span)) in enumerate(
            zip(_as_lists(store), before, strict=True)
        ):
            added = count if user in users else 0
            assert vectors[: len(old_vectors)] == old_vectors
            assert birth_span == old_birth_span + [span] * added
            assert len(vectors) == len(old_vectors) + added
    assert len(store.values) == store.offsets[-1]


@settings(deadline=None)
@given(expansions, st.permutations(range(7)), st.integers(0, 7))
def test_gather_and_scatter_touch_only_their_users(device, steps, order, number):
    store = _store(7, 4, seed=3, device=device)
    for span, (users, count) in enumerate(steps):
        store.expand(torch.tensor(sorted(users), dtype=torch.int64), count, span)
    before = _as_lists(store)
    rows = torch.tensor(order[:number], dtype=torch.int64)
    found = store.gather(rows)
    for vectors, mask, row in zip(found.vectors, found.mask, rows.tolist(), strict=True):
        assert vectors[mask].tolist() == before[row][0]
        assert not vectors[~mask].any()
    _scatter(store, rows, Interests(found.vectors + 1, found.mask))
    for row, ((vectors, _), (old, _)) in enumerate(zip(_as_lists(store), before, strict=True)):
        moved = torch.tensor(old) + (row in rows)
        assert torch.equal(torch.tensor(vectors), moved)


def _by_user(store):
    return dict(zip(store.owned.users(torch.arange(len(store.counts))).tolist(), _as_lists(store), strict=True))


def test_new_interests_depend_only_on_user_and_slot():
    stores = [
        InterestStore(InterestStoreConfig(), OwnedUsers(4, buckets), users, 8, 0, seed, CPU)
        for buckets, users, seed in [(range(4), 3, 1), (range(1, 3), 3, 1), (range(4), 9, 1), (range(4), 3, 2)]
    ]
    for store in stores:
        for span, (users, count) in enumerate([(torch.arange(12), 4), (torch.tensor([1, 4]), 2)]):
            store.expand(store.owned.rows(users[store.owned.owns(users)]), count, span)
    whole, part, longer, _ = map(_by_user, stores)
    assert part == {user: whole[user] for user in (1, 2, 5, 6, 9, 10)}
    assert {user: longer[user] for user in whole} == whole
    assert not torch.isin(stores[3].values, stores[0].values).any()


@settings(deadline=None)
@given(expansions, st.integers(0, 7))
def test_growing_keeps_the_rows_of_old_users(device, steps, more):
    store, never_grown = (_store(7, 4, seed=3, query_dim=2, state_dim=1, device=device) for _ in range(2))
    for span, (users, count) in enumerate(steps):
        for one in (store, never_grown):
            one.expand(torch.tensor(sorted(users), dtype=torch.int64), count, span)
        values = store.values
        store.grow(7 + more * span)
        assert store.values is values
        assert store.users_per_bucket == len(store.counts) == 7 + more * span
        assert all(map(torch.equal, store.slots, never_grown.slots))
        assert _as_lists(store)[:7] == _as_lists(never_grown)
        assert not store.counts[7:].any()


def test_a_store_that_needs_not_grow_keeps_its_snapshots():
    store = _store(5, 4, seed=3)
    store.expand(torch.arange(3), 2, span=0)
    snapshot = store.snapshot()
    store.grow(4)
    assert store.offsets is snapshot.offsets
    assert store.bytes == sum(tensor.nbytes for tensor in (*store.slots, store.offsets))


def test_new_interests_do_not_depend_on_the_chunk_size(monkeypatch):
    def drawn():
        store = _store(9, 6, seed=1, query_dim=3)
        store.expand(torch.arange(9), 2, span=0)
        store.expand(torch.tensor([1, 4, 8]), torch.tensor([3, 1, 2]), span=1)
        return store.slots

    whole = drawn()
    monkeypatch.setattr(slots, "DRAWN", 4)
    monkeypatch.setitem(columns.PART, "cpu", 50)
    assert all(map(torch.equal, whole, drawn()))


def test_build_owns_the_users_of_its_buckets():
    stores = [InterestStore.build(InterestStoreConfig(), 5, 3, 4, 0, 0, Topology(rank, 2, 2, CPU)) for rank in range(2)]
    assert [list(_by_user(store)) for store in stores] == [[0, 1, 5, 6, 10, 11], [2, 3, 4, 7, 8, 9, 12, 13, 14]]


@settings(deadline=None)
@given(expansions, st.lists(st.booleans(), min_size=40, max_size=40))
def test_trim_removes_only_the_named_interests(device, steps, draws):
    store = _store(7, 4, seed=3, query_dim=2, state_dim=3, device=device)
    for span, (users, count) in enumerate(steps):
        store.expand(torch.tensor(sorted(users), dtype=torch.int64), count, span)
    store.slots.states.copy_(torch.randn(len(store.values), 3))
    store.slots.moments.copy_(torch.arange(len(store.values)).unsqueeze(1))
    keep = torch.tensor((draws * (1 + len(store.values) // 40))[: len(store.values)], dtype=torch.bool)
    expected = [
        [column[a:b][keep[a:b]].tolist() for column in store.slots]
        for a, b in zip(store.offsets[:-1].tolist(), store.offsets[1:].tolist(), strict=True)
    ]
    store.trim(keep)
    found = [
        [column[a:b].tolist() for column in store.slots]
        for a, b in zip(store.offsets[:-1].tolist(), store.offsets[1:].tolist(), strict=True)
    ]
    assert found == expected
    assert store.offsets[-1] == len(store.values) == keep.sum()


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 6), st.integers(0, 3)))
def test_expand_creates_a_number_of_interests_for_each_user(device, more):
    store = _store(7, 4, seed=3, query_dim=2, state_dim=3, device=device)
    store.expand(torch.arange(7), 2, span=0)
    store.slots.moments.fill_(5)
    store.slots.states.fill_(6)
    before = [column.clone() for column in store.slots]
    store.expand(torch.tensor(list(more), dtype=torch.int64), torch.tensor(list(more.values()), dtype=torch.int64), 1)
    assert store.counts.tolist() == [2 + more.get(user, 0) for user in range(7)]
    old = store.birth_span == 0
    for column, was in zip(store.slots, before, strict=True):
        assert torch.equal(column[old], was)
    assert not store.slots.moments[~old].any()
    assert not store.slots.states[~old].any()
    rows = torch.arange(7)
    slots = torch.arange(int(store.counts.max()), device=device)
    assert torch.equal(store.view(rows, 1).existing, store.gather(rows).mask & (slots < 2))


def test_queries_start_equal_for_all_users_and_different_for_all_slots():
    store = _store(3, 4, seed=3, query_dim=8)
    store.expand(torch.arange(3), 2, span=0)
    queries = store.queries(torch.arange(3))
    assert torch.equal(queries[0], queries[2])
    assert not torch.equal(queries[0, 0], queries[0, 1])


@settings(deadline=None)
@given(expansions, st.lists(st.integers(0, 6), max_size=6), st.integers(0, 4))
def test_the_host_knows_where_interests_are(device, steps, rows, span):
    store, rows = _store(7, 4, seed=3, device=device), torch.tensor(rows, dtype=torch.int64)
    for number, (users, count) in enumerate(steps):
        store.layout(store.owned.users(rows), span)  # must not be kept
        store.expand(torch.tensor(sorted(users), dtype=torch.int64), count, number)
    view, layout = store.view(rows, span), store.layout(store.owned.users(rows), span)
    mask, existing = (on("cpu", one) for one in (view.interests.mask, view.existing))
    new = mask & ~existing & existing.any(1, keepdim=True)
    assert layout.most == mask.shape[1]
    for places, wanted in ((layout.real(), mask), (layout.existing(), existing), (layout.new(), new)):
        assert torch.equal(places, wanted.flatten().nonzero().squeeze(1))


def test_a_snapshot_restores_interests_and_queries(device):
    store = _store(3, 4, seed=3, query_dim=8, device=device)
    store.expand(torch.arange(3), 2, span=0)
    snapshot, before = store.snapshot(), [column.clone() for column in store.slots]
    for _ in range(2):
        store.expand(torch.tensor([1]), 2, span=1)
        store.update_queries(store.owned.users(torch.arange(3)), torch.ones(3, 4, 8), span=1)
        store.restore(snapshot)
        assert all(torch.equal(a, b) for a, b in zip(store.slots, before, strict=True))
        assert store.counts.tolist() == [2, 2, 2]


@pytest.mark.parametrize("change", ["expand", "trim", "scatter", "update_queries", "restore"])
def test_interests_change_after_copies_of_them_are_made(change):
    store, rows = _store(3, 4, seed=3, query_dim=8), torch.arange(3)
    store.expand(rows, 2, span=0)
    snapshot = store.snapshot()
    users, layout = store.owned.users(rows), store.layout(store.owned.users(rows), span=0)
    store.update_queries(users, torch.ones(3, 2, 8), span=0)
    before = [column.clone() for column in store.slots]
    with late_copies():
        copies = [devices.copy_to_host(column) for column in store.slots]
        if change == "expand":
            store.expand(rows[:1], 1, span=1)
        elif change == "trim":
            store.trim(torch.arange(6) % 2 > 0)
        elif change == "scatter":
            store.scatter(users, Interests(torch.ones(3, 2, 4), torch.ones(3, 2, dtype=torch.bool)), layout)
        elif change == "update_queries":
            store.update_queries(users, torch.ones(3, 2, 8), span=0)
        else:
            store.restore(snapshot)
    assert all(map(torch.equal, copies, before))
    assert not all(map(torch.equal, copies, store.slots))


def test_slots_of_a_snapshot_do_not_change_when_interests_are_created(device):
    store = _store(4, 4, seed=3, query_dim=8, state_dim=2, device=device)
    store.expand(torch.tensor([0, 2]), 2, span=0)
    snapshot, before = store.snapshot(), [column.clone() for column in store.slots]
    assert store.slots_of(snapshot).values is store.values
    store.expand(torch.tensor([1, 2]), 3, span=1)
    store.update_queries(store.owned.users(torch.arange(4)), torch.ones(4, 5, 8), span=1)
    assert all(map(torch.equal, store.slots_of(snapshot), before))
    store.restore(snapshot)
    assert store.offsets is snapshot.offsets
    assert all(map(torch.equal, store.slots, before))


def test_expanding_no_user_changes_nothing_but_the_identity_of_offsets():
    store = _store(4, 4, seed=3, query_dim=8)
    store.expand(torch.tensor([0, 2]), 2, span=0)
    snapshot, values = store.snapshot(), store.values
    store.expand(torch.tensor([], dtype=torch.int64), 2, span=1)
    assert store.values is values
    assert store.counts.tolist() == [2, 0, 2, 0]
    assert store.offsets is not snapshot.offsets  # as on a rank whose users gain some
    store.restore(snapshot)
    assert torch.equal(store.values, values)


@pytest.mark.parametrize("part", [1, 100, 1 << 20])
def test_interests_move_within_their_memory_while_it_is_large_enough(device, monkeypatch, part):
    monkeypatch.setitem(columns.PART, device, part)
    store = _store(50, 4, seed=3, device=device)
    store.expand(torch.arange(0, 50, 2), 3, span=0)
    before, block = _as_lists(store), store.values.data_ptr()
    store.trim(store.birth_span < 0)
    assert not len(store.values)
    store.expand(torch.arange(0, 50, 3), 2, span=0)
    few = _as_lists(store)
    store.expand(torch.tensor([49, 0, 17]), torch.tensor([1, 3, 2]), span=1)
    assert [vectors[: len(old)] for (vectors, _), (old, _) in zip(_as_lists(store), few, strict=True)] == [
        old for old, _ in few
    ]
    store.trim(store.birth_span == 0)
    assert _as_lists(store) == few
    store.trim(store.birth_span < 0)
    store.expand(torch.arange(0, 50, 2), 3, span=0)
    assert _as_lists(store) == before
    assert store.values.data_ptr() == block


def test_created_interests_are_only_those_of_users_with_older_ones(device):
    store = _store(5, 4, seed=3, device=device)
    store.expand(torch.tensor([1, 3]), 2, span=0)
    store.expand(torch.tensor([3, 4]), 2, span=1)
    places = store.created(1)
    assert store.owners[places].tolist() == [3, 3]
    assert store.birth_span[places].tolist() == [1, 1]
    assert torch.equal(store.norms(places), store.values[places].norm(dim=1))
    assert not len(store.created(0))
    assert not len(store.norms(store.created(2)))


def test_states_move_with_the_interests_of_their_users(device):
    store = _store(4, 4, seed=3, state_dim=5, device=device)
    store.expand(torch.arange(3), 2, span=0)
    rows = torch.tensor([2, 0])
    assert not store.view(rows, 1).states.any()
    found, states, snapshot = store.gather(rows), torch.randn(2, 2, 5, device=device), store.snapshot()
    _scatter(store, rows, Interests(found.vectors, found.mask, states))
    assert torch.equal(store.view(rows, 1).states, states)
    assert not store.view(torch.tensor([1]), 1).states.any()
    _scatter(store, rows, found)  # without states, they stay
    assert torch.equal(store.view(rows, 1).states, states)
    assert store.slots_of(snapshot).states is store.slots.states  # a copy would double what they take
    store.expand(torch.tensor([3]), 2, span=1)
    assert torch.equal(store.view(rows, 1).states, states)
    assert not store.view(torch.tensor([3]), 1).states.any()
    other = _store(4, 4, seed=3, state_dim=5, device=device)
    other.load(store.owners, values=store.values, states=store.slots.states)
    assert torch.equal(other.view(torch.arange(4), 1).states, store.view(torch.arange(4), 1).states)


@pytest.mark.parametrize("memory", ["auto", "device"])
def test_interests_move_to_the_host_before_they_fill_the_device(monkeypatch, caplog, memory):
    monkeypatch.setattr(devices, "free_bytes", lambda device: 800)  # besides the store
    store = _store(6, 4, seed=3, memory=memory)
    with caplog.at_level("INFO"):
        store.expand(torch.arange(6), 3, span=0)  # 18 of 18 bytes
        assert "move to the host's memory" not in caplog.text
        store.expand(torch.arange(6), torch.tensor([9, 9, 9, 9, 9, 9]), span=1)
        assert ("72 interests take" in caplog.text and "move to the host's memory" in caplog.text) == (memory == "auto")
        caplog.clear()
        _store(6, 4, seed=3).load(store.owners, values=store.values)
        assert "move" in caplog.text


@pytest.mark.cuda
@pytest.mark.parametrize("moved", [False, True])
def test_interests_on_the_host_equal_those_on_the_device(monkeypatch, moved):
    stores = [_store(50, 4, seed=3, query_dim=2, device="cuda", memory=memory) for memory in ("auto", "device")]
    auto, stayed = stores
    for store in stores:
        store.expand(torch.arange(50), 3, span=0)
    before = [(store.snapshot(), _as_lists(store)) for store in stores]
    monkeypatch.setattr(devices, "free_bytes", lambda device: 0 if moved and device.type == "cuda" else None)
    for store in stores:
        store.expand(torch.tensor([4, 9]), 2, span=1)
    assert (auto.values.device.type, stayed.values.device.type) == ("cpu" if moved else "cuda", "cuda")
    rows = torch.tensor([9, 0], device=CUDA)
    for one, other in zip(*(store.view(rows, 1, CUDA) for store in stores), strict=True):
        for mine, yours in zip(one, other, strict=True) if isinstance(one, tuple) else [(one, other)]:
            if mine is not None:
                torch.testing.assert_close(mine, yours)  # new ones are drawn where the store is
    for store, (snapshot, lists) in zip(stores, before, strict=True):
        store.restore(snapshot)
        assert _as_lists(store) == lists
        assert store.slots_of(snapshot).queries.shape == (150, 2)


def _columns_after_every_method(device):
    """The columns of a store after each method, as copies on the host."""
    store, rows = _store(40, 6, seed=5, query_dim=3, state_dim=2, device=device), torch.arange(0, 40, 3)
    draw, copies = torch.Generator().manual_seed(0), []

    def copy():
        copies.append([on("cpu", column).clone() for column in (*store.slots, store.offsets)])

    store.expand(torch.arange(40), 2, span=0)
    copy()
    store.expand(rows, torch.randint(4, rows.shape, generator=draw), span=1)
    copy()
    snapshot, width = store.snapshot(), int(store.counts[on(device, rows)].max())
    for _ in range(3):
        gradient = torch.randn(len(rows), width, 3, generator=draw)
        store.update_queries(store.owned.users(rows), gradient, span=1)
        copy()
    found = store.gather(rows, CPU)
    states = torch.randn(*found.mask.shape, 2, generator=draw)
    store.restore(snapshot)
    copy()
    _scatter(store, rows, Interests(0.5 * found.vectors, found.mask, states))
    copy()
    store.trim(store.values.norm(dim=1) > 1.5)
    copy()
    return copies


@pytest.mark.cuda
def test_a_store_on_a_device_equals_one_on_the_host():
    for found, expected in zip(_columns_after_every_method("cuda"), _columns_after_every_method("cpu"), strict=True):
        for one, other in zip(found, expected, strict=True):
            # Draws and updates use logarithms and roots, whose last bit differs between devices.
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
            assert one.is_floating_point() or torch.equal(one, other)


@pytest.mark.cuda
def test_a_store_on_the_host_serves_a_device():
    """With ``store.memory: host``, views go to the device, and rows, gradients and vectors come from it."""
    store, alone = _store(5, 4, seed=3, query_dim=2), _store(5, 4, seed=3, query_dim=2)
    rows, gradient = torch.tensor([4, 1]), torch.randn(2, 2, 2)
    for one, place in ((store, "cuda"), (alone, "cpu")):
        one.expand(on(place, torch.arange(5)), on(place, torch.full((5,), 2)), span=0)
        one.update_queries(one.owned.users(rows), on(place, gradient), span=0)
        view = one.gather(on(place, rows), torch.device(place))
        assert view.vectors.device.type == view.mask.device.type == place
        assert one.view(on(place, rows), 1, torch.device(place)).existing.device.type == place
        _scatter(one, rows, view.replace(2 * view.vectors))
    assert all(map(torch.equal, store.slots, alone.slots))


def test_bytes_follow_the_interests():
    store = _store(3, 4, seed=3, query_dim=8, state_dim=5)
    assert store.bytes == 4 * 8
    store.expand(torch.arange(3), 2, span=0)
    assert store.bytes == 4 * 8 + 6 * (4 * 4 + 2 + 8 * 4 + 4 + 5 * 4)


def test_impossible_values_are_refused():
    with pytest.raises(ValueError, match=r"store\.query_learning_rate"):
        InterestStoreConfig(query_learning_rate=0)

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_imsr.data.schedule import Schedule, ranges

sizes_of_buckets = st.lists(st.integers(0, 30), min_size=1, max_size=12)
batches = st.integers(1, 40)


def _users(buckets, sizes, all_sizes, batch, keys):
    """The users of each step as (bucket, user), for the rank that owns some buckets."""
    schedule = Schedule(buckets, [sizes[bucket] for bucket in buckets], sum(all_sizes), batch)
    order = schedule.shuffle(*keys)
    names = [(bucket, user) for bucket in buckets for user in range(sizes[bucket])]
    return [[names[order[place]] for place in schedule.places(step)] for step in range(schedule.steps)]


@settings(deadline=None)
@given(sizes=sizes_of_buckets, batch=batches, seed=st.integers(0, 9))
def test_each_user_once_an_epoch(sizes, batch, seed):
    steps = _users(range(len(sizes)), sizes, sizes, batch, (seed, 0, 0))
    seen = [user for step in steps for user in step]
    assert sorted(seen) == [(bucket, user) for bucket, size in enumerate(sizes) for user in range(size)]


@settings(deadline=None)
@given(sizes=sizes_of_buckets, batch=batches, cuts=st.lists(st.integers(0, 12), max_size=3))
def test_it_does_not_depend_on_the_number_of_ranks(sizes, batch, cuts):
    alone = _users(range(len(sizes)), sizes, sizes, batch, (1, 2, 3))
    edges = [0, *sorted(min(cut, len(sizes)) for cut in cuts), len(sizes)]
    ranks = [_users(range(a, b), sizes, sizes, batch, (1, 2, 3)) for a, b in itertools.pairwise(edges)]
    assert {len(steps) for steps in ranks} == {len(alone)}
    together = [sorted(user for steps in ranks for user in steps[step]) for step in range(len(alone))]
    assert together == [sorted(step) for step in alone]


@settings(deadline=None)
@given(sizes=sizes_of_buckets, batch=batches)
def test_step_of_places_inverts_places(sizes, batch):
    schedule = Schedule(range(len(sizes)), sizes, sum(sizes), batch)
    steps = [schedule.places(step) for step in range(schedule.steps)]
    wanted = np.concatenate([np.full(len(places), step) for step, places in enumerate(steps)] or [[]])
    order = np.concatenate([*steps, np.empty(0, np.int64)])
    np.testing.assert_array_equal(schedule.step_of_places()[order], wanted)


@settings(deadline=None)
@given(size=st.integers(1, 50), buckets=st.integers(1, 64), batch=st.integers(1, 100))
def test_buckets_are_spread_over_steps(size, buckets, batch):
    schedule = Schedule(range(buckets), [size] * buckets, size * buckets, batch)
    users = [len(schedule.places(step)) for step in range(schedule.steps)]
    # Without phases, all buckets would contribute to the same steps, whose sizes would differ by the number of buckets.
    assert max(users) - min(users) <= max(3, buckets // 4)


def test_seeds_spans_and_epochs_differ():
    def shuffled(*keys):
        return _users(range(4), [50] * 4, [50] * 4, 32, keys)

    assert shuffled(0, 0, 0) == shuffled(0, 0, 0)
    assert len({str(shuffled(*keys)) for keys in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]}) == 4


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5)), max_size=10))
def test_ranges(pairs):
    starts, lengths = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    assert ranges(starts, lengths).tolist() == [start + i for start, length in pairs for i in range(length)]

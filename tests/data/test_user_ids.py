import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_imsr.data.user_ids import OwnedUsers, sort_keys


@st.composite
def owned(draw):
    n_buckets = draw(st.integers(1, 70))
    first, last = sorted(draw(st.tuples(*[st.integers(0, n_buckets - 1)] * 2)))
    return OwnedUsers(n_buckets, range(first, last + 1))


users_or_rows = st.lists(st.integers(0, 2**40), unique=True).map(sorted)


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
@settings(deadline=None)
@given(owned(), users_or_rows)
def test_rows_and_users_are_inverses_in_the_same_order(kind, owned, rows):
    users = owned.users(kind(rows, dtype=kind([0]).dtype))
    assert owned.rows(users).tolist() == rows
    assert users.tolist() == sorted(users.tolist())
    assert owned.owns(users).all()


@settings(deadline=None)
@given(owned(), users_or_rows)
def test_users_are_those_of_the_buckets(owned, users):
    found = owned.owns(np.array(users, np.int64))
    assert found.tolist() == [user % owned.n_buckets in owned.buckets for user in users]


@settings(deadline=None)
@given(owned(), st.integers(0, 50))
def test_rows_have_no_gaps(owned, locals_):
    users = [local * owned.n_buckets + bucket for local in range(locals_) for bucket in owned.buckets]
    assert owned.rows(np.array(users, np.int64)).tolist() == list(range(len(users)))


@settings(deadline=None)
@given(st.integers(1, 70), st.lists(st.integers(0, 2**40 - 1)))
def test_keys_sort_by_bucket_and_then_by_id(n_buckets, users):
    order = sort_keys(np.array(users, np.int64), n_buckets).argsort(kind="stable")
    assert [users[at] for at in order] == sorted(users, key=lambda user: (user % n_buckets, user))

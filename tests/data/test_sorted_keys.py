import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_imsr.data.sorted_keys import find_sorted

KEYS = st.lists(st.integers(-3, 12), max_size=8)


@given(KEYS, KEYS)
def test_keys_are_found_at_their_first_place(keys, wanted):
    keys.sort()
    expected = [keys.index(key) if key in keys else -1 for key in wanted]
    assert find_sorted(np.array(keys, np.int64), np.array(wanted, np.int64)).tolist() == expected


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64])
def test_types_may_be_narrow(dtype):
    assert find_sorted(np.array([1, 4, 9], dtype), np.array([9, 0, 4], dtype)).tolist() == [2, -1, 1]

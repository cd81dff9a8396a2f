import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dist_imsr.comparison.statistics import Paired, deviation, holm, improvement, mean, over_seeds, over_users, paired


def test_means_and_deviations_by_hand():
    assert (mean([1, 2, 6]), deviation([1, 2, 6])) == (3, pytest.approx(7**0.5))
    assert (mean([]), deviation([]), deviation([1.0])) == (None, None, None)


def test_improvement_as_in_table_3():
    assert improvement([16.03, 16.43], [14.75, 14.46]) == pytest.approx(11.15, abs=0.05)  # MIND, FR, Electronics
    assert improvement([1, 1], [0, 0]) is None


def test_pairs_against_scipy_and_by_hand():
    draw = np.random.default_rng(0)
    one, two = draw.normal(0.1, 1, 50), draw.normal(0, 1, 50)
    assert paired(one - two) == Paired(50, pytest.approx(stats.ttest_rel(one, two).pvalue))
    differences = np.array([1.0, 2.0, 3.0])
    t = 2 / (1 / 3**0.5)
    assert paired(differences).p == pytest.approx(2 * stats.t.sf(t, 2))
    assert paired(-differences).p == pytest.approx(paired(differences).p)  # two sides


def test_too_few_differences_give_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert paired([]) == Paired(0, None)
        assert paired([1.0]) == Paired(1, None)
        assert paired([0.0] * 4) == Paired(4, 1.0)
        assert paired([0.1 + 0.2, 0.3]) == Paired(2, None)


def _slow_holm(values):
    """From the definition: the step-down thresholds, inverted by the largest of what came before."""
    tests = [value for value in values if value is not None]
    return [
        None
        if own is None
        else max(min(1.0, other * sum(third >= other for third in tests)) for other in tests if other <= own)
        for own in values
    ]


@settings(deadline=None)
@given(st.lists(st.none() | st.floats(0, 1), max_size=9, unique=True))
def test_holm_against_a_slow_loop(values):
    assert holm(values) == pytest.approx(_slow_holm(values))


def test_holm_by_hand():
    assert holm([0.01, None, 0.04, 0.03, 0.005]) == pytest.approx([0.03, None, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


def test_seeds_that_one_side_lacks_are_left_out():
    own, other = {0: 3.0, 1: 5.0, 2: 4.0}, {3: 9.0, 2: 1.0, 1: 1.0}
    assert over_seeds(own, other) == Paired(2, pytest.approx(stats.ttest_rel([5.0, 4.0], [1.0, 1.0]).pvalue))


def _write(path, values):
    users = list(values)
    hr, ndcg = ([pair[place] for pair in values.values()] for place in (0, 1))
    pq.write_table(pa.table({"user": users, "hr@5": hr, "ndcg@5": ndcg}), path)
    return path


def test_each_users_mean_over_its_own_tests_is_one_value(tmp_path):
    own = [
        _write(tmp_path / "it's own.parquet", {"a": (1.0, 0.5), "b": (0.0, 0.0)}),
        _write(tmp_path / "b", {"c": (1.0, 1.0), "a": (0.0, 0.0)}),
    ]
    other = [
        _write(tmp_path / "c", {"b": (1.0, 0.2), "a": (0.0, 0.0)}),
        _write(tmp_path / "d", {"a": (0.0, 0.0), "c": (0.0, 0.0)}),
    ]
    found = over_users(own, other, 5)
    assert found["hr"] == Paired(3, pytest.approx(stats.ttest_1samp([0.5, -1.0, 1.0], 0).pvalue))
    assert found["ndcg"] == Paired(3, pytest.approx(stats.ttest_1samp([0.25, -0.2, 1.0], 0).pvalue))
    assert over_users(own, own, 5)["hr"] == Paired(3, 1.0)
    assert over_users(own * 2, other * 2, 5) == found  # the one run of a baseline stands for two seeds


@pytest.mark.parametrize("users", [["a", "b"], ["a", "b", "c", "a"], ["a", "b", "d"]])
def test_other_users_are_refused(tmp_path, users):
    own = _write(tmp_path / "a", dict.fromkeys("abc", (1.0, 1.0)))
    other = tmp_path / "b"
    pq.write_table(pa.table({"user": users, "hr@5": [0.0] * len(users), "ndcg@5": [0.0] * len(users)}), other)
    with pytest.raises(ValueError, match="were tested on different users"):
        over_users([own], [other], 5)

import pytest

from dist_imsr.data.batch import BatchConfig


@pytest.mark.parametrize("key", ["size", "max_history", "max_targets", "negatives", "eval_size", "prefetch"])
def test_impossible_values_are_refused(key):
    with pytest.raises(ValueError, match=rf"batch\.{key}"):
        BatchConfig(**{key: 0})

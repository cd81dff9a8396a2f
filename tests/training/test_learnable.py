import pytest

from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.strategies.training_config import TrainingConfig
from dist_imsr.training.learnable import check_learnable
from tests.commands import start_ranks
from tests.prepared import write_dataset

_FEW, _SOME, _MANY = [0], [0, 1, 2], [0, 1, 2, 3]


def _check(folder, history, **training):
    write_dataset(folder, history, buckets=2)
    check_learnable(Dataset(DataConfig(folder)), TrainingConfig(**training))


@pytest.mark.parametrize("first", [[0, 1], _MANY])
def test_one_user_to_train_on_suffices(tmp_path, first):
    _check(tmp_path, {0: [_FEW] * 4, 1: [first, _FEW, _SOME, _FEW]})


@pytest.mark.parametrize("first", [_FEW, _SOME])
def test_a_first_span_with_nothing_to_train_on_is_refused(tmp_path, first):
    with pytest.raises(ValueError, match=r"span 0, the pre-training span: none of its 3 users.*fewer --spans") as error:
        _check(tmp_path, {user: [first, _MANY, _MANY, _MANY] for user in range(3)} | {3: [[], _MANY, _MANY, _MANY]})
    assert str(tmp_path) in str(error.value)


def test_trained_spans_without_validation_targets_are_refused_unless_all_epochs_are_trained(tmp_path):
    history = {user: [[0, 1], [1, 0], [0, 1], _MANY] for user in range(4)}
    with pytest.raises(ValueError, match=r"nothing to validate on in spans 0 to 2: none of the 4 users.*patience 0"):
        _check(tmp_path, history)
    check_learnable(Dataset(DataConfig(tmp_path)), TrainingConfig(patience=0))
    with pytest.raises(ValueError, match=r"in span 0: "):
        check_learnable(Dataset(DataConfig(tmp_path)), TrainingConfig(spans=0))


def test_later_spans_in_which_nobody_can_be_tested_are_refused(tmp_path):
    new_user = {4: [[], [], [], _MANY]}  # has met nothing before
    history = {user: [_MANY, _MANY, [0, 1], [0, 1]] for user in range(4)} | new_user
    with pytest.raises(ValueError, match=r"nothing to test on in spans 2 to 3: no user has 3 .*training\.spans 0"):
        _check(tmp_path, history)
    check_learnable(Dataset(DataConfig(tmp_path)), TrainingConfig(spans=0))


def test_one_tested_user_suffices(tmp_path):
    _check(tmp_path, {0: [_MANY, [], [], []], 1: [[], _FEW, [], _SOME]})


def test_the_command_refuses_in_one_line(tmp_path):
    folder = write_dataset(tmp_path / "data", {user: [_FEW, _MANY, _MANY] for user in range(8)})
    ranks = start_ranks(tmp_path, "--data.path", folder, "--run_dir", tmp_path / "run")
    errors = [rank.communicate()[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2]
    assert errors[0].startswith(f"train: data.path: {folder} has nothing to train on in span 0")
    assert errors[0].count("\n") == 1
    assert errors[1] == ""
    assert not (tmp_path / "run").exists()

"""Data whose old spans are retired: runs that stand behind them go on, others are refused."""

from dataclasses import replace

import pytest

from dist_imsr.evaluation.evaluator import EvalConfig
from dist_imsr.evaluation.repeats import RepeatsConfig
from dist_imsr.strategies import StrategyConfig, TrainingConfig
from dist_imsr.strategies.ader import ADERConfig
from dist_imsr.training.checkpoint import name_of, newest_first
from dist_imsr.training.run import check
from tests.prepared import drawn_history, retire_before, write_dataset
from tests.ranks import ranks_on
from tests.runs import run
from tests.training.test_checkpoint import _config

FINE_TUNING = StrategyConfig("fine_tuning")
HISTORY = drawn_history(users=60, items=80, spans=5, longest=12)
WITH_HISTORY = "fine_tuning_with_history"
OTHERS = {
    "full_retraining": ({"strategy": StrategyConfig("full_retraining")}, "full_retraining trains on all spans"),
    WITH_HISTORY: ({"strategy": StrategyConfig(WITH_HISTORY)}, f"{WITH_HISTORY} reads all spans"),
    "ader": ({"strategy": StrategyConfig("ader")}, r"strategy\.ader\.pool: sequences of all earlier spans"),
    "exclude_seen": ({"eval": EvalConfig([5], exclude_seen=True)}, r"eval\.exclude_seen: "),
    "repeats": ({"repeats": RepeatsConfig(enabled=True)}, r"repeats\.enabled: "),
}


def _resumed(folder, run_dir, strategy=FINE_TUNING, changes=None, **training):
    sections = {"strategy": strategy, "training": TrainingConfig(epochs=1, incremental_epochs=1, **training)}
    return _config(folder, run_dir, **sections | (changes or {}))


def _without_unseen(states):
    """The end of a run on each rank, without the metrics for which all earlier spans are needed."""
    return [
        ([{key: value for key, value in line.items() if "unseen" not in key} for line in lines], digests)
        for lines, digests in states
    ]


@pytest.mark.parametrize("strategy", ["imsr", "sml", "ader"])
def test_incremental_training_never_reads_old_rows(tmp_path, strategy):
    chosen = StrategyConfig(strategy, ader=ADERConfig(pool=0))
    with ranks_on(2) as ranks:
        whole = write_dataset(tmp_path / "whole", HISTORY)
        wanted = ranks.call(run, _resumed(whole, tmp_path / "a", chosen, until="newest"))
        data = write_dataset(tmp_path / "data", HISTORY, spans=3)
        config = _resumed(data, tmp_path / "b", chosen, until="newest")
        ranks.call(run, config)
        write_dataset(data, HISTORY)
        retire_before(data, 3)
        assert _without_unseen(ranks.call(run, config)) == _without_unseen(wanted)
        assert config.run_dir.joinpath("metrics.jsonl").read_text().count('"hr@5_unseen": null') > 0


@pytest.mark.parametrize("name", OTHERS)
def test_what_needs_old_rows_is_refused_before_it_starts(tmp_path, name):
    changes, message = OTHERS[name]
    data = write_dataset(tmp_path / "data", HISTORY, spans=3)
    config = _resumed(data, tmp_path / "run", changes=changes)
    with ranks_on(1) as ranks:
        ranks.call(run, config)
    retire_before(data, 2)
    assert check(config)[1].remaining.nothing  # a run that has ended needs no rows
    write_dataset(data, HISTORY)
    retire_before(data, 2)
    with pytest.raises(ValueError, match=rf"{message}.*the rows before span 2 of .* were retired") as error:
        check(config)
    assert "prepare the whole log again" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_run_that_would_read_a_retired_span_is_refused(tmp_path):
    data = write_dataset(tmp_path / "data", HISTORY)
    config = _resumed(data, tmp_path / "run", StrategyConfig("fine_tuning"), spans=1)
    with ranks_on(1) as ranks:
        ranks.call(run, config)
    retire_before(data, 2)
    longer = replace(config, training=replace(config.training, spans=None))
    assert check(longer)[1].remaining.spans == range(2, 4)
    retire_before(data, 3)
    with pytest.raises(ValueError, match=r"this run would read span 2, but the rows before span 3 of"):
        check(longer)
    new = replace(longer, run_dir=tmp_path / "new")
    with pytest.raises(ValueError, match=r"this run would read span 0, but"):
        check(new)
    pretrained = next(path for path in newest_first(config.run_dir / "checkpoints") if path.name == name_of(1, 0, 0))
    with pytest.raises(ValueError, match=r"this run would read span 1, but"):
        check(replace(new, resume=str(pretrained)))

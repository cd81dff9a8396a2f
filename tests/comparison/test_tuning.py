import json

import torch

from dist_imsr.comparison.config import Row, TuningConfig
from dist_imsr.comparison.grid import Grid
from dist_imsr.comparison.jobs import Jobs, State
from dist_imsr.comparison.tuning import best_trial, combinations, trials_of

ROWS = {"frozen": Row(), "fine_tuning": Row(), "imsr": Row(), "life_long": Row()}
KEYS = {"strategy.imsr.rho": [2.0, 4.0, 6.0], "strategy.imsr.trimmer.project": [True, False]}
ALL = {"imsr": KEYS, "frozen": {"catalogue.incremental_learning_rate": [0.1]}, "life_long": KEYS}


def _trials(place, tuning):
    grid = Grid(place.compare(strategies=ROWS, tuning=tuning), torch.device("cpu"))
    jobs = Jobs(place.output, keep=False)
    return {experiment.row: trials_of(grid, jobs, experiment) for experiment in grid.experiments}


def test_the_order_is_the_seeds_and_every_combination_comes_once():
    drawn = combinations(KEYS, 0)
    assert drawn == combinations(KEYS, 0) != combinations(KEYS, 1)
    assert len({tuple(one.values()) for one in drawn}) == len(drawn) == 6
    assert all(list(one) == list(KEYS) for one in drawn)


def test_the_configured_values_come_first_and_the_budget_is_kept(place):
    trials = _trials(place, TuningConfig(3, 1, seed=5, keys=ALL))["imsr"]
    assert [trial.number for trial in trials] == [0, 1, 2]
    assert trials[0].values == {}
    drawn = [
        one for one in combinations(KEYS, 5) if one != {"strategy.imsr.rho": 4.0, "strategy.imsr.trimmer.project": True}
    ]
    assert [trial.values for trial in trials[1:]] == drawn[:2]
    assert len(_trials(place, TuningConfig(99, 1, keys=ALL))["imsr"]) == 6
    for trial in trials:
        config = trial.job.config
        assert (config.training.spans, config.seed, config.eval.per_user) == (1, 5, False)
        assert config.strategy.imsr.rho == trial.values.get("strategy.imsr.rho", 4.0)


def test_nothing_is_tried_where_nothing_could_be_judged_or_chosen(place):
    trials = _trials(place, TuningConfig(3, 1, keys=ALL))
    assert not trials["frozen"]  # validates nothing
    assert not trials["life_long"]
    assert not trials["fine_tuning"]  # no keys
    assert not any(_trials(place, TuningConfig(1, 1, keys=ALL)).values())


def test_validation_alone_chooses(place):
    trials = _trials(place, TuningConfig(3, 2, keys=ALL))["imsr"]
    assert best_trial(trials) is None
    found = [([0.1, 0.3], 0.9, "done"), ([0.3, None, 0.1], 0.0, "done"), ([0.9, 0.9], 0.9, "failed")]
    for trial, (validations, hr, status) in zip(trials, found, strict=True):
        trial.job.folder.mkdir(parents=True)
        lines = (json.dumps({"validation": value, "hr@5": hr, "users": 1, "test_span": 2}) for value in validations)
        (trial.job.folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        trial.job.end(State(status))
    assert [trial.validation for trial in trials] == [0.2, 0.2, None]
    assert best_trial(trials) is trials[0]  # the earlier of equals; a failed one never

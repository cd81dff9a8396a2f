"""No interaction of a span reaches any parameter before the model of the span before was tested on it."""

from dataclasses import replace

import numpy as np
import pytest

from dist_imsr.benchmarks.ranks import LocalRanks
from dist_imsr.data.dataset import Dataset
from dist_imsr.model.extractors import ModelConfig
from dist_imsr.model.mimn import MIMNConfig
from dist_imsr.strategies import STRATEGIES
from dist_imsr.training.trainer import Trainer
from tests.prepared import drawn_history, write_dataset
from tests.runs import left
from tests.training.test_checkpoint import GROWING, _config

HISTORY = drawn_history(users=60, items=80, spans=4, longest=12)
LAST = 2  # span 3 is the future: SML's transfer has learnt by then, and ADER's pool is of two spans


def _others(folder, history, span):
    """The same data up to a span, and other interactions, as many, of each user after it."""
    draw, changed = np.random.default_rng(1), {}
    known = max(item for spans in history.values() for items in spans[: span + 1] for item in items)
    for user, spans in history.items():
        later = [[int(item) for item in draw.integers(known + 1, size=len(items))] for items in spans[span + 1 :]]
        changed[user] = [*spans[: span + 1], *later]
    return write_dataset(folder, changed)


def _tested(topology, config):
    """What each span leaves, each model tested before the next span is learnt."""
    config.run_dir.mkdir(exist_ok=True)
    trainer = Trainer(config, Dataset(config.data), topology)
    states, told = [], []
    for span in range(LAST + 1):
        trainer.train_span(span)
        states.append(left(trainer)[1])
        told.append(trainer.test(span + 1))
    return states, [line["users"] for line in told]


RUNS = [(name, "comirec_sa" if name in ("sml", "imsr") else "comirec_dr") for name in STRATEGIES]


@pytest.mark.parametrize(("name", "base"), [*RUNS, ("life_long", "mimn"), ("life_long", "limarec")])
def test_the_future_reaches_no_parameter(tmp_path, name, base):
    """Poison of span t + 1 changes nothing of M^t, of which each was tested before."""
    folders = write_dataset(tmp_path / "data", HISTORY), _others(tmp_path / "poisoned", HISTORY, LAST)
    model = ModelConfig(base, dim=12, interests=3, mimn=MIMNConfig(12, 12, 12))
    changes = {"strategy": replace(GROWING, name=name), "model": model}
    with LocalRanks(2, seconds=120) as ranks:
        first, second = (ranks.call(_tested, _config(data, data / "run", **changes)) for data in folders)
    for (states, users), (others, _) in zip(first, second, strict=True):
        assert states == others
        assert users[LAST] > 0

"""No interaction and no user of a span reaches the model of the span before, in parameters, interests or memory."""

from dataclasses import replace

import numpy as np
import pytest

from dist_imsr.data.dataset import Dataset
from dist_imsr.model.extractors import ModelConfig
from dist_imsr.model.mimn import MIMNConfig
from dist_imsr.strategies import STRATEGIES
from dist_imsr.training.trainer import Trainer
from tests.prepared import drawn_history, write_dataset
from tests.ranks import ranks_on
from tests.runs import left
from tests.training.test_checkpoint import GROWING, _config

HISTORY = {user: spans for user, spans in drawn_history(users=60, items=80, spans=4, longest=12).items() if any(spans)}
LAST = 2  # span 3 is the future: by then SML's transfer is trained, and ADER's pool covers two spans


def _others(folder, history, span):
    """The same data up to a span, with other items and further users in the later spans, of which there is one more."""
    draw, changed = np.random.default_rng(1), {}
    known = max(item for spans in history.values() for items in spans[: span + 1] for item in items)
    for user, spans in history.items():
        later = [[int(item) for item in draw.integers(known + 1, size=len(items))] for items in spans[span + 1 :]]
        changed[user] = [*spans[: span + 1], *later, [0]]
    changed |= {len(changed) + user: [[]] * (span + 1) + [[1, 2, 3], [4]] for user in range(30)}
    return write_dataset(folder, changed)


def _tested(topology, config):
    """The states after each span, and the numbers of users; each model is tested before the next span is trained."""
    config.run_dir.mkdir(exist_ok=True)
    trainer = Trainer(config, Dataset(config.data), topology)
    states, tests = [], []
    for span in range(LAST + 1):
        trainer.train_span(span)
        states.append(left(trainer)[1])
        tests.append(trainer.test(span + 1))
    return states, [line["users"] for line in tests]


RUNS = [(name, "comirec_sa" if name in ("sml", "imsr") else "comirec_dr") for name in STRATEGIES]


@pytest.mark.parametrize(("name", "base"), [*RUNS, ("life_long", "mimn"), ("life_long", "limarec")])
def test_the_future_reaches_no_parameter(tmp_path, name, base):
    """Other interactions and further users in span t + 1 and later change no bit of M^t, nor its size."""
    folders = write_dataset(tmp_path / "data", HISTORY), _others(tmp_path / "poisoned", HISTORY, LAST)
    model = ModelConfig(base, dim=12, interests=3, mimn=MIMNConfig(12, 12, 12))
    changes = {"strategy": replace(GROWING, name=name), "model": model}
    with ranks_on(2) as ranks:
        first, second = (ranks.call(_tested, _config(data, data / "run", **changes)) for data in folders)
    for (states, users), (others, _) in zip(first, second, strict=True):
        assert states == others
        assert users[LAST] > 0

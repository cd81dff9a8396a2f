import numpy as np
import pytest

from dist_imsr.data.batch import BatchConfig
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.data.joined import SpanWithHistory
from dist_imsr.data.span import SpanData
from dist_imsr.strategies import StrategyConfig
from dist_imsr.training.trainer import Trainer
from tests.prepared import drawn_history, write_dataset
from tests.ranks import run_ranks
from tests.training.test_checkpoint import _config

HISTORY = drawn_history(users=60, items=80, spans=3, longest=9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), HISTORY)


def test_only_the_last_span_is_trained_with_histories_from_all(folder):
    options = Dataset(DataConfig(folder)), 2, range(8), BatchConfig(size=16, max_history=100), 0, lambda counts: counts
    alone, joined = SpanData(*options), SpanWithHistory(*options)
    assert len(joined.training(0)) == len(alone.training(0))
    for plain, batch in zip(alone.training(0), joined.training(0), strict=True):
        assert batch.users.tolist() == plain.users.tolist()
        assert batch.targets.values().tolist() == plain.targets.values().tolist()
        histories = [part.tolist() for part in batch.history.values().split(batch.history.lengths().tolist())]
        own = [part.tolist() for part in plain.history.values().split(plain.history.lengths().tolist())]
        for user, history, here in zip(batch.users.tolist(), histories, own, strict=True):
            first, second, _ = HISTORY[user]
            assert history == [*first, *second, *here]


def _written(topology, config):
    """Which users' interests each span changes, and which have any."""
    config.run_dir.mkdir(exist_ok=True)
    trainer, changed, before = Trainer(config, Dataset(config.data), topology), [], {}
    for span in range(2):
        trainer.train_span(span)
        store = trainer.model.store
        now = {
            user: vectors.numpy().copy()
            for user, vectors in zip(
                store.owned.users(np.arange(len(store.counts))).tolist(),
                store.values.split(store.counts.tolist()),
                strict=True,
            )
            if len(vectors)
        }
        changed.append({user for user in now if user not in before or not np.array_equal(now[user], before[user])})
        before = now
    return changed


@pytest.mark.parametrize(("name", "everybody"), [("fine_tuning_with_history", True), ("fine_tuning", False)])
def test_every_user_is_written_after_each_span(folder, tmp_path, name, everybody):
    config = _config(folder, tmp_path / "run", strategy=StrategyConfig(name))
    written = [set.union(*spans) for spans in zip(*run_ranks(2, _written, config), strict=True)]
    active = [{user for user, spans in HISTORY.items() if spans[span]} for span in range(2)]
    assert written[0] == active[0]
    assert written[1] == (active[0] | active[1] if everybody else active[1])

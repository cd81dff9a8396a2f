"""A finished run's table is held once: without optimizer state, copies, or the table of the span before."""

import gc
import threading

import pytest
import torch

from dist_imsr.data.batch import BatchConfig
from dist_imsr.data.dataset import DataConfig
from dist_imsr.evaluation.evaluator import EvalConfig
from dist_imsr.evaluation.finished import FinishedRun, SpanState
from dist_imsr.evaluation.ranking import RankingConfig
from dist_imsr.evaluation.recommend import RecommendConfig, recommend
from dist_imsr.evaluation.retest import EvaluateConfig, retest
from dist_imsr.model.extractors import ModelConfig
from dist_imsr.phases import process_memory
from dist_imsr.strategies import StrategyConfig
from dist_imsr.training.config import TrainConfig, TrainingConfig
from tests.prepared import write_dataset
from tests.ranks import ranks_on
from tests.runs import run

ITEMS, DIM, USERS, SPANS = 150_000, 124, 16, 4
TABLE = ITEMS * (DIM + 4) * 4  # bytes: d and a bias, padded to a multiple of 4


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The folder of a run with a table that dwarfs all else, which two ranks exported after every span."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "data").mkdir()
    history = {user: [[user + 3 * place for place in range(5)] for _ in range(SPANS)] for user in range(USERS)}
    history[0] = [list(range(ITEMS)), *[[]] * (SPANS - 1)]  # in no test, which reads what its users have met
    config = TrainConfig(
        data=DataConfig(write_dataset(folder / "data", history)),
        run_dir=folder / "run",
        model=ModelConfig(dim=DIM),
        strategy=StrategyConfig("fine_tuning"),
        batch=BatchConfig(size=16, max_history=8, max_targets=3, negatives=20),
        training=TrainingConfig(epochs=1, incremental_epochs=1, patience=0, export="every"),
        baselines=False,
    )
    with ranks_on(2) as ranks:
        ranks.call(run, config)
    return config.run_dir


class _OwnMemory:
    """The most memory of this process, without mapped files, above that at the beginning."""

    def __enter__(self):
        gc.collect()
        self.peak, self._before, self._done = 0, process_memory()["RssAnon"], threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def _sample(self):
        while not self._done.wait(0.001):
            self.peak = max(self.peak, process_memory()["RssAnon"] - self._before)

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()


def _load(topology, run_dir):
    finished = FinishedRun(run_dir)
    SpanState(finished, 2, ITEMS, topology, RankingConfig())  # loads what the process lacks
    with _OwnMemory() as memory:
        state = SpanState(finished, 2, ITEMS, topology, RankingConfig())
    weight = state.catalogue.flushed_weight()[: len(state.catalogue.own_items(range(ITEMS)))]
    return memory.peak / TABLE, set(state.catalogue.flushed_state()), weight[::1000].clone()


def test_a_loaded_table_is_held_once_and_without_optimizer_state(large):
    with ranks_on(1) as ranks:
        ((tables, columns, rows),) = ranks.call(_load, large)
    with ranks_on(2) as ranks:
        parts = [part for *_, part in ranks.call(_load, large)]
    assert columns == {"weight"}
    assert 0.9 < tables < 1.6
    assert torch.equal(rows, torch.cat(parts))


def _retest(topology, run_dir):
    finished, config = FinishedRun(run_dir), EvaluateConfig(run_dir, eval=EvalConfig([5]))

    def follow(steps, *_):
        return steps

    retest(config, finished, [1], topology, follow)
    with _OwnMemory() as memory:
        retest(config, finished, [1, 2], topology, follow)
    return memory.peak / TABLE


def _recommend(topology, run_dir, output):
    config, finished = RecommendConfig(run_dir, output), FinishedRun(run_dir)
    recommend(config, finished, 1, None, topology)
    with _OwnMemory() as memory:
        recommend(config, finished, 2, None, topology)
    return memory.peak / TABLE


def test_tests_and_recommendations_hold_one_table(large, tmp_path):
    with ranks_on(1) as ranks:
        assert 0.9 < ranks.call(_retest, large)[0] < 1.7
        assert 0.9 < ranks.call(_recommend, large, tmp_path / "best.parquet")[0] < 1.7

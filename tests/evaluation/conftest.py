"""One small trained run over a log with strings for ids, for all tests that read finished runs."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from rich.console import Console

from dist_imsr.data.batch import BatchConfig
from dist_imsr.data.dataset import DataConfig
from dist_imsr.data.prepare import PrepareConfig, prepare
from dist_imsr.data.sources import ColumnsConfig
from dist_imsr.evaluation.evaluator import EvalConfig
from dist_imsr.evaluation.finished import FinishedRun, SpanState
from dist_imsr.evaluation.ranking import RankingConfig
from dist_imsr.model.extractors import ModelConfig
from dist_imsr.model.interests import Interests
from dist_imsr.strategies import StrategyConfig
from dist_imsr.training.config import TrainConfig, TrainingConfig
from tests.ranks import run_ranks
from tests.runs import run


class Finished(NamedTuple):
    """A run's folder, the log that it was prepared from as (user, item, time), and its prepared data."""

    folder: Path
    log: list[tuple[str, str, int]]
    data: Path


def _log(users=50, items=60, spans=4, length=1000):
    draw, log = np.random.default_rng(0), []
    for user in range(users):
        taste = draw.integers(items, size=3)
        for span in range(spans):
            for time in np.sort(draw.integers(span * length, (span + 1) * length, size=draw.integers(2, 9))):
                item = (draw.choice(taste) + draw.integers(5)) % items
                log.append((f"user-{user}", f"sku-{item}", int(time)))
    return log


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    folder, log = tmp_path_factory.mktemp("finished"), _log()
    (folder / "log.csv").write_text("who,what,when\n" + "".join(f"{u},{i},{t}\n" for u, i, t in log))
    options = {
        "min_interactions": 1,
        "spans": 3,
        "buckets": 5,
        "columns": ColumnsConfig(user="who", item="what", time="when"),
    }
    prepare(
        PrepareConfig(source="csv", input=folder / "log.csv", output=folder / "data", **options), Console(quiet=True)
    )
    config = TrainConfig(
        data=DataConfig(folder / "data"),
        run_dir=folder / "run",
        model=ModelConfig(dim=8),
        strategy=StrategyConfig("imsr"),
        batch=BatchConfig(size=16, max_targets=3, negatives=20, eval_size=24),
        training=TrainingConfig(epochs=3, incremental_epochs=2, export="every"),
        eval=EvalConfig([5, 10]),
    )
    run_ranks(2, run, config)
    return Finished(folder / "run", log, folder / "data")


def state_of(topology, folder, span):
    """A span's queries by raw user id, and its rows of the table by raw item id, in the order of ids."""
    run = FinishedRun(folder)
    state = SpanState(run, span, run.dataset.items_by_span[span], topology, RankingConfig())
    store = state.store
    users = store.owned.users(torch.arange(len(store.counts))).numpy()
    known = run.dataset.known(users, span)
    users = run.dataset.raw_ids("users", users[known]).to_pylist()
    items = run.dataset.raw_ids("items", np.arange(run.dataset.items_by_span[span])).to_pylist()
    alone = Interests(store.values.unsqueeze(1), torch.ones(len(store.values), 1, dtype=torch.bool))
    queries = state.ranker.scoring.queries(alone).vectors.squeeze(1)
    stored = [part.double().numpy() for part in queries.split(store.counts[known].tolist())]
    rows = state.catalogue.flushed_weight().double().numpy()
    return dict(zip(users, stored, strict=True)), dict(zip(items, rows, strict=False))


@pytest.fixture(scope="session")
def last_state(finished):
    """`state_of` the last trained span."""
    return run_ranks(1, state_of, finished.folder, 2)[0]

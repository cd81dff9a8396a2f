"""The commands of launch/ as Python functions, for notebooks: the same configurations, one process, Arrow tables back.

Sections of strategies and base models of one's own come with ``dist_imsr.config.resolve(TrainConfig, ["--import=...",
...])``, which reads arguments as the command does.

Bad input raises ValueError with the line that the command would print. A run that is interrupted resumes when it is
called again, as the command does.
"""

import gc
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq
import torch.distributed as dist
from rich.console import Console

from dist_imsr.addresses import Location
from dist_imsr.data.prepare import PrepareConfig
from dist_imsr.data.prepare import prepare as prepare_data
from dist_imsr.evaluation.recommend import RecommendConfig, write_recommendations
from dist_imsr.evaluation.retest import EvaluateConfig, evaluate_run
from dist_imsr.launcher import RankInfo, rank_info, variables_of_ranks
from dist_imsr.processes import free_port
from dist_imsr.training.config import TrainConfig
from dist_imsr.training.forget import forgetting_in_runs
from dist_imsr.training.run import run_training

__all__ = [
    "EvaluateConfig",
    "PrepareConfig",
    "RecommendConfig",
    "TrainConfig",
    "evaluate",
    "prepare",
    "recommend",
    "train",
]


def prepare(config: PrepareConfig) -> Location:
    """Prepares a raw log for training, as launch/prepare.py does.

    Args:
        config: the input, the options and the output.

    Returns:
        The folder of the prepared data, or its address.

    Raises:
        ValueError: naming key, file or row.
    """
    console = Console(stderr=True)
    with forgetting_in_runs(config, console):
        prepare_data(config, console)
    return config.append or config.output  # type: ignore[return-value]  # it has one of them


def train(config: TrainConfig) -> pa.Table:
    """Trains and tests a run, as launch/train.py does, or resumes it.

    Args:
        config: the whole tree.

    Returns:
        The lines of metrics.jsonl: one row for each tested span.

    Raises:
        ValueError: naming the key.
        FloatingPointError: for a loss that is not finite.
        Stopped: if the last checkpoint could not be written.
    """
    with _single_process():
        outcome = run_training(config)
        outcome.check()
        return pa.Table.from_pylist(outcome.lines)


def evaluate(config: EvaluateConfig) -> pa.Table:
    """Tests the exported spans of a run, as launch/evaluate.py does.

    Args:
        config: the run and the metrics.

    Returns:
        One row for each span.

    Raises:
        ValueError: naming the key or the file.
    """
    with _single_process():
        return pa.Table.from_pylist(evaluate_run(config))


def recommend(config: RecommendConfig) -> pa.Table:
    """Writes users' top items to ``config.output``, as launch/recommend.py does.

    Args:
        config: the run, the users and the output.

    Returns:
        The file's rows, by memory map: user, item, score, rank, interest.

    Raises:
        ValueError: naming the key, the file or the users.
    """
    with _single_process():
        write_recommendations(config)
    return pq.read_table(config.output, memory_map=True)


@contextmanager
def _single_process() -> Iterator[None]:
    """One rank of its own, which leaves neither a process group nor variables nor log files open."""
    if dist.is_initialized() or rank_info().world_size > 1:
        raise RuntimeError(
            "these functions run in one process without a launcher; on several ranks use the scripts, or unset "
            f"{variables_of_ranks()} if they are left over"
        )
    names, root = RankInfo().environment, logging.getLogger()
    before = {name: os.environ[name] for name in names if name in os.environ}
    handlers = list(root.handlers)
    os.environ.update(RankInfo(port=free_port()).environment)
    try:
        yield
    finally:
        gc.collect()  # the parts of a model refer to each other, and would outlive their process group
        if dist.is_initialized():
            dist.destroy_process_group()
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)
        for handler in set(root.handlers) - set(handlers):
            root.removeHandler(handler)
            handler.close()

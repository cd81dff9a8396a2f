from dataclasses import replace
from unittest.mock import patch

import pytest

from dist_imsr.data.batch import BatchConfig
from dist_imsr.data.dataset import DataConfig
from dist_imsr.distributed.recommender import Recommender
from dist_imsr.distributed.topology import Topology
from dist_imsr.strategies.span_trainer import SpanTrainer
from dist_imsr.training.checkpoint import CheckpointConfig
from dist_imsr.training.config import TrainConfig, TrainingConfig
from tests.prepared import drawn_history, write_dataset
from tests.ranks import run_ranks
from tests.runs import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), drawn_history(users=40, items=80, spans=3))


def _watched(topology, config, faulty_step=0):
    """The steps of a run; after how many of them losses were read, and timeouts changed, in order; and its error.

    The loss of one step may be not a number.
    """
    steps, reads, timeouts, error = 0, [], [(0, None)], None
    train_step, read_losses = Recommender.train_step, SpanTrainer._read_losses

    def counted_step(self, *arguments, **options):
        nonlocal steps
        steps += 1
        return train_step(self, *arguments, **options) / (0.0 if steps == faulty_step else 1.0)

    def counted_read(self, unread, where):
        reads.append(steps)
        return read_losses(self, unread, where)

    def set_timeout(self, seconds):
        if seconds != timeouts[-1][1]:
            timeouts.append((steps, seconds))

    with (
        patch.object(Recommender, "train_step", counted_step),
        patch.object(SpanTrainer, "_read_losses", counted_read),
        patch.object(Topology, "set_timeout", set_timeout),
    ):
        try:
            run(topology, config)
        except FloatingPointError as raised:
            error = str(raised)
    return steps, reads, timeouts[1:], error


def _config(folder, run_dir, every_steps=0):
    return TrainConfig(
        data=DataConfig(folder),
        run_dir=run_dir,
        batch=BatchConfig(size=2, negatives=20),
        training=TrainingConfig(epochs=2, incremental_epochs=1, spans=0),
        checkpoint=CheckpointConfig(every_steps=every_steps),
        baselines=False,
    )


def test_losses_are_read_every_four_steps_before_checkpoints_and_at_the_end_of_an_epoch(folder, tmp_path):
    ((steps, reads, _, _),) = run_ranks(1, _watched, _config(folder, tmp_path / "plain"))
    each = steps // 2
    assert each > 8
    assert each % 4
    ends = [*range(4, each, 4), each]
    assert reads == [*ends, *(each + end for end in ends)]
    ((_, reads, _, _),) = run_ranks(1, _watched, _config(folder, tmp_path / "saved", every_steps=6))
    assert reads[:3] == [4, 6, min(10, each)]


def test_ranks_wait_less_long_within_an_epoch_but_after_checkpoints(folder, tmp_path):
    config = replace(_config(folder, tmp_path / "run", every_steps=6), step_timeout_seconds=20)
    ((steps, _, timeouts, _),) = run_ranks(1, _watched, config)
    each = steps // 2
    assert 7 < each < 11
    assert timeouts[:5] == [(4, 20), (6, 1800), (each, 20), (each, 1800), (each + 4, 20)]
    shorter = replace(config, run_dir=tmp_path / "shorter", timeout_seconds=10)
    ((_, _, timeouts, _),) = run_ranks(1, _watched, shorter)
    assert timeouts == [(4, 10)]


def test_a_loss_that_is_not_finite_is_reported_with_its_own_step(folder, tmp_path):
    ((steps, _, _, error),) = run_ranks(1, _watched, _config(folder, tmp_path), 6)
    assert steps == 8
    assert "is not finite in span 0, epoch 0, step 5 of " in error

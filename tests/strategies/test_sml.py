import gc
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from dist_imsr.data.dataset import Dataset
from dist_imsr.distributed.command import REQUEUE, Stopped
from dist_imsr.model.extractors import ModelConfig
from dist_imsr.model.transfer import Transfer
from dist_imsr.strategies import StrategyConfig, span_trainer
from dist_imsr.strategies.sml import SML, SMLConfig
from dist_imsr.training.checkpoint import CheckpointConfig, name_of
from dist_imsr.training.run import begin, check
from dist_imsr.training.trainer import Trainer
from tests.prepared import drawn_history, write_dataset
from tests.ranks import ranks_on, run_ranks
from tests.runs import left, run
from tests.training.test_checkpoint import SHIPPED, _config

OPTIONS = SMLConfig(filters=2, hidden=8, learning_rate=0.01, chunk=7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), drawn_history(users=60, items=80, spans=4, longest=12))


def _sml(folder, run_dir, options=OPTIONS, **changes):
    return _config(folder, run_dir, strategy=StrategyConfig("sml", sml=options), **changes)


def _returning(topology, config):
    """A run whose transfer outputs the tuned parameters."""
    with patch.object(Transfer, "forward", lambda self, previous, tuned: tuned + 0 * self.output.bias.sum()):
        return run(topology, config)[0]


@pytest.mark.parametrize("base", ["comirec_dr", "comirec_sa"])
def test_a_transfer_that_returns_its_tuned_input_is_fine_tuning(folder, tmp_path, base):
    model = ModelConfig(base, dim=8, interests=3)
    found = run_ranks(2, _returning, _sml(folder, tmp_path / "sml", model=model))[0]
    tuned = _config(folder, tmp_path / "ft", model=model, strategy=StrategyConfig("fine_tuning"))
    wanted = run_ranks(2, run, tuned)[0][0]
    assert len(found) == len(wanted) == 2
    for line, one in zip(found, wanted, strict=True):
        for key in line.keys() - {"strategy"}:
            number = isinstance(one[key], float)
            assert line[key] == (pytest.approx(one[key], rel=1e-4, abs=1e-5) if number else one[key]), key


def _begun(topology, config):
    """Tables and transfers before and after the transfer's epochs, and the most rows that pass it at once."""
    config.run_dir.mkdir(exist_ok=True)
    trainer = Trainer(config, Dataset(config.data), topology)
    trainer.train_span(0)
    trainer.train_span(1)
    strategy, sizes, real = trainer.strategy, [], Transfer.forward

    def watched(transfer, previous, tuned):
        sizes.append(len(tuned))
        return real(transfer, previous, tuned)

    train_transfer, seen = strategy._train_transfer, []

    def look():
        tables = trainer.model.catalogue, strategy.previous.table, strategy.tuned.table
        transfers = torch.cat([parameter.detach().flatten() for parameter in strategy.transfers.parameters()])
        seen.append([*(table.flushed_weight().clone() for table in tables), transfers])

    def watched_training(*arguments):
        look()
        train_transfer(*arguments)
        look()

    strategy._train_transfer = watched_training
    with patch.object(Transfer, "forward", watched):
        trainer.train_span(2)
    return seen, max(sizes)


def test_only_the_transfer_is_trained_in_its_epochs_and_rows_pass_in_chunks(folder, tmp_path):
    config = _sml(folder, tmp_path / "run", replace(OPTIONS, chunk=30))
    for (before, after), largest in run_ranks(2, _begun, config):
        *tables, transfers = before
        *same, learnt = after
        assert all(torch.equal(one, other) for one, other in zip(tables, same, strict=True))
        assert torch.equal(tables[0], tables[2])  # the live one shows what was tuned
        assert not torch.equal(tables[0], tables[1])
        assert (transfers != learnt).float().mean() > 0.9
        assert largest <= 60  # a step's distinct items; the whole table is larger


def test_the_transfer_is_trained_from_the_second_span_on(folder, tmp_path):
    lines = [
        run_ranks(1, run, _sml(folder, tmp_path / str(epochs), replace(OPTIONS, epochs=epochs)))[0][0]
        for epochs in (0, 2)
    ]
    assert lines[0][0] == lines[1][0]  # in span 1 there is no tuned model yet
    assert lines[0][1]["loss"] != lines[1][1]["loss"]


@pytest.mark.parametrize(("base", "stage"), [("comirec_dr", "zero2"), ("comirec_sa", "bf16")])
def test_other_world_sizes_give_the_same_numbers(folder, tmp_path, base, stage):
    model = ModelConfig(base, dim=8, interests=3)
    config = _sml(folder, tmp_path / "one", model=model)
    config = replace(config, engine=replace(config.engine, deepspeed=SHIPPED / f"{stage}.json"))
    (wanted, _), *_ = run_ranks(1, run, config)
    (found, _), *_ = run_ranks(3, run, replace(config, run_dir=tmp_path / "three"))
    near = 1e-3 if stage == "zero2" else 6e-2  # bf16 has 8 bits, and scores four times the agreement
    for line, one in zip(found, wanted, strict=True):
        for key in ("loss", "validation", "ndcg@5"):
            assert line[key] == pytest.approx(one[key], rel=near, abs=near), key


@pytest.mark.parametrize(("key", "value"), [("filters", 0), ("kernel", 4), ("hidden", 0), ("epochs", -1), ("chunk", 0)])
def test_impossible_values_are_refused(key, value):
    with pytest.raises(ValueError, match=rf"strategy\.sml\.{key}"):
        SMLConfig(**{key: value})


def test_nothing_is_kept_before_the_second_span():
    assert SML(OPTIONS).state() == {}


class _DelayedStop:
    """Stop signals that arrive after a number of reads of their status."""

    def __init__(self, reads):
        self._reads = reads

    @property
    def status(self):
        self._reads -= 1
        return REQUEUE if self._reads < 0 else 0


def _stopped(topology, config, reads):
    """A run that is stopped and resumed; the checkpoint that it resumed from, and its final state."""
    dataset, candidates = check(config)
    trainer = begin(config, dataset, candidates, topology, _DelayedStop(reads))
    with pytest.raises(Stopped), patch.object(span_trainer, "READ_EVERY", 2):  # of 3 steps in an epoch
        trainer.run()
    del trainer
    gc.collect()
    dist.barrier()
    dataset, candidates = check(config)
    trainer = begin(config, dataset, candidates, topology, None)
    resumed = trainer.checkpoint_name
    trainer.run()
    return resumed, left(trainer)


def test_a_run_stopped_anywhere_resumes_to_the_same_bits(folder, tmp_path):
    """Also in the transfer's epochs and in validation, when the live model is not the tuned one."""
    config = _sml(folder, tmp_path / "whole", checkpoint=CheckpointConfig(every_steps=0, keep_spans=9))
    resumed = set()
    with ranks_on(2) as ranks:
        wanted = ranks.call(run, config)
        begun = config.run_dir / "checkpoints" / name_of(2, 0, 0)
        for reads in range(1, 20, 4):
            again = replace(config, run_dir=tmp_path / str(reads), resume=str(begun))
            again.run_dir.mkdir()
            for (name, found), one in zip(ranks.call(_stopped, again, reads), wanted, strict=True):
                assert found == one, (reads, name)
                resumed.add(name)
    assert len(resumed) >= 4  # steps of its epochs, their ends, and the span's beginning

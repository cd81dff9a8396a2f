import errno
import json
import logging
import os
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from dist_imsr.data.batch import BatchConfig
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.distributed.catalogue import CatalogueConfig
from dist_imsr.distributed.engine import EngineConfig
from dist_imsr.distributed.recommender import Recommender
from dist_imsr.evaluation.evaluator import EvalConfig
from dist_imsr.files import HashedFile
from dist_imsr.model.detector import DetectorConfig
from dist_imsr.model.extractors import ModelConfig
from dist_imsr.model.mimn import MIMNConfig
from dist_imsr.model.trimmer import TrimmerConfig
from dist_imsr.strategies import StrategyConfig
from dist_imsr.strategies.imsr import IMSRConfig
from dist_imsr.training.checkpoint import CheckpointConfig, newest_first
from dist_imsr.training.config import TrainConfig, TrainingConfig
from dist_imsr.training.resume import CheckpointCandidates
from dist_imsr.training.trainer import Trainer
from tests.prepared import drawn_history, write_dataset
from tests.ranks import on_devices, ranks_on, run_ranks
from tests.runs import run

SHIPPED = Path(__file__).parents[2] / "configs" / "deepspeed"
GROWING = StrategyConfig(
    "imsr",
    IMSRConfig(
        1.0,
        DetectorConfig(measure="divergence", rule="mean", c1=0.02, untrained=True, delta_k=2, k_max=9, epochs=None),
        TrimmerConfig(c2=0.1),
    ),
)
EVERY = CheckpointConfig(every_steps=2, keep_last=1000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), drawn_history(users=60, items=80, spans=4, longest=12))


def _config(folder, run_dir, **changes):
    sections = {
        "model": ModelConfig(dim=8, interests=3),
        "strategy": GROWING,
        "batch": BatchConfig(size=16, max_history=10, max_targets=3, negatives=20, eval_size=16),
        "catalogue": TABLE,
        "training": TrainingConfig(epochs=3, incremental_epochs=3, patience=1, export="every"),
        "eval": EvalConfig([5]),
        "checkpoint": EVERY,
    }
    return TrainConfig(data=DataConfig(folder), run_dir=run_dir, **(sections | changes))


def _exported(run_dir):
    return {path.relative_to(run_dir): path.read_bytes() for path in sorted(run_dir.glob("spans/*/*"))}


TABLE = CatalogueConfig(headroom=0.05)  # grown in some spans and not in others
IN_HOST_MEMORY = CatalogueConfig("adagrad", headroom=800.0, device_memory=1)


@on_devices(
    "base",
    "strategy",
    "stage",
    cpu=[
        ("comirec_dr", "imsr", "bf16"),
        ("comirec_sa", "imsr", "zero1"),
        ("mind", "fine_tuning", "zero2"),
        ("comirec_dr", "frozen", "zero0"),
        ("comirec_dr", "full_retraining", "zero0"),
        ("mimn", "life_long", "zero1"),
        ("comirec_sa", "sml", "zero1"),
        ("comirec_dr", "ader", "zero0"),
    ],
    cuda=[
        ("comirec_dr", "imsr", "zero0"),  # with Adam
        ("comirec_sa", "imsr", "zero1"),
        ("mind", "fine_tuning", "bf16"),
    ],
)
def test_every_checkpoint_resumes_to_the_same_bits(folder, tmp_path, device, base, strategy, stage):
    _resumes(folder, tmp_path, device, base, strategy, stage, TABLE)


@pytest.mark.cuda
def test_a_table_in_host_memory_resumes_to_the_same_bits(folder, tmp_path):
    ((kernel, *_),) = run_ranks(
        1, _kernel, _config(folder, tmp_path / "kernel", catalogue=IN_HOST_MEMORY), device="cuda"
    )
    assert kernel == "fused_uvm_caching"
    _resumes(folder, tmp_path, "cuda", "comirec_dr", "imsr", "zero0", IN_HOST_MEMORY)


def _kernel(topology, config):
    config.run_dir.mkdir()
    return [Trainer(config, Dataset(config.data), topology).model.catalogue.kernel]


def _resumes(folder, tmp_path, device, base, strategy, stage, table):
    whole = _config(
        folder,
        tmp_path / "whole",
        model=ModelConfig(base, dim=8, interests=3, mimn=MIMNConfig(12, 9, 8)),
        strategy=replace(GROWING, name=strategy),
        engine=EngineConfig(SHIPPED / f"{stage}.json"),
        catalogue=table,
    )
    with ranks_on(1 if device == "cuda" else 2, device) as ranks:
        wanted = ranks.call(run, whole)
        checkpoints = newest_first(whole.run_dir / "checkpoints")
        trains_once = strategy in ("frozen", "life_long")
        assert len(checkpoints) >= (6 if trains_once else 15)
        kept = {json.loads((path / "manifest.json").read_text())["snapshot"] for path in checkpoints}
        apart = "interests apart" if strategy == "imsr" or base == "comirec_sa" else "apart"
        assert kept >= ({"none", "this"} if trains_once else {"none", "this", apart})
        every = 4 if strategy == "imsr" and base == "comirec_dr" else 3 if trains_once else 8  # a part of them each
        for number, checkpoint in enumerate(checkpoints[len(base) % every :: every]):
            again = replace(whole, run_dir=tmp_path / str(number), resume=str(checkpoint))
            assert ranks.call(run, again) == wanted, checkpoint.name
            assert (again.run_dir / "metrics.jsonl").read_text().count("\n") == 2
            for name, found in _exported(again.run_dir).items():
                assert found == (whole.run_dir / name).read_bytes(), (checkpoint.name, name)


@pytest.mark.parametrize(("base", "stage"), [("comirec_dr", "zero0"), ("comirec_sa", "zero2")])
def test_other_world_sizes_resume_to_the_same_numbers(folder, tmp_path, base, stage):
    whole = _config(
        folder,
        tmp_path / "whole",
        model=ModelConfig(base, dim=8, interests=3),
        engine=EngineConfig(SHIPPED / f"{stage}.json"),
    )
    wanted = run_ranks(2, run, whole)[0][0]
    earlier, sizes = whole, {1: "span=01-epoch=000-step=000002", 3: "span=01-epoch=002", 2: "span=02-epoch=001"}
    for world_size, name in sizes.items():  # 2 -> 1 -> 3 -> 2
        checkpoint = next(
            path for path in newest_first(earlier.run_dir / "checkpoints")[::-1] if path.name.startswith(name)
        )
        earlier = replace(whole, run_dir=tmp_path / str(world_size), resume=str(checkpoint))
        found = run_ranks(world_size, run, earlier)[0][0]
        assert [line["span"] for line in found] == [1, 2]
        for line, one in zip(found, wanted, strict=True):
            for key in line.keys() - {"store_bytes"}:  # counts one more offset a rank
                near = {"rel": 1e-3, "abs": 1e-3 if base == "comirec_sa" else 1e-4}
                if key.startswith("fit_p"):  # the middle of a bin: a rounding error may move a value to the next one
                    near = {"rel": 0.05, "abs": 2e-4}
                number = isinstance(one[key], float)
                assert line[key] == (pytest.approx(one[key], **near) if number else one[key]), key


def test_auto_resumes_from_the_newest_sound_checkpoint_and_prunes(folder, tmp_path, caplog):
    config = _config(folder, tmp_path / "run", checkpoint=CheckpointConfig(every_steps=2, keep_last=3, keep_spans=2))
    checkpoints = config.run_dir / "checkpoints"
    with ranks_on(2) as ranks:
        wanted = ranks.call(run, config)
        names = [path.name for path in newest_first(checkpoints)]
        assert names[0] == "span=03-epoch=000-step=000000"
        assert len(names) == 4
        assert names[3] == "span=02-epoch=000-step=000000"
        assert {path.name for path in checkpoints.iterdir()} == set(names)
        lines = (config.run_dir / "metrics.jsonl").read_text()
        assert ranks.call(run, config) == wanted  # a run that has ended
        assert (config.run_dir / "metrics.jsonl").read_text() == lines
        (checkpoints / names[0] / "tensors-001.bin").write_bytes(b"")
        _flip(checkpoints / names[1] / "interests" / "bucket=003.arrow", 70)
        (checkpoints / ".partial-span=09").mkdir()
        (config.run_dir / "metrics.jsonl").write_text("torn li")
        assert ranks.call(run, config) == wanted
        assert (config.run_dir / "metrics.jsonl").read_text().count("\n") == 2
    left = {path.name for path in checkpoints.iterdir()}
    assert {f"damaged-{names[0]}", f"damaged-{names[1]}"} < left
    assert not any(name.startswith(".") for name in left)
    assert newest_first(checkpoints)[0].name == names[0]


def _flip(path, place, bits=0x10):
    content = bytearray(path.read_bytes())
    content[place] ^= bits
    path.write_bytes(content)


@pytest.fixture(scope="module")
def sound(folder, tmp_path_factory):
    """A run's configuration, its results, and a copy of its folder."""
    config = _config(folder, tmp_path_factory.mktemp("sound") / "run", training=TrainingConfig(2, 1, patience=1))
    with ranks_on(2) as ranks:
        wanted = ranks.call(run, config)
    return config, wanted, shutil.copytree(config.run_dir, config.run_dir.with_name("kept"))


@pytest.mark.parametrize("harm", ["flip", "truncate", "delete", "empty"])
def test_damage_to_any_file_is_found_and_named(sound, harm):
    config, wanted, kept = sound
    newest, before, *_ = (config.run_dir / "checkpoints" / path.name for path in newest_first(kept / "checkpoints"))
    with ranks_on(2) as ranks:
        files = [path for path in (kept / "checkpoints" / newest.name).rglob("*") if path.is_file()]
        assert {path.name.split("-")[0].split("=")[0] for path in files} == {
            *("manifest.json", "manifest.json.sha256", "tensors", "bucket")
        }
        kinds = ("manifest.json", "manifest.json.sha256", "tensors-001.bin", "interests/bucket=007.arrow")
        for name in kinds:
            shutil.rmtree(config.run_dir)
            shutil.copytree(kept, config.run_dir)
            path = newest / name
            size = path.stat().st_size
            if harm == "flip":
                _flip(path, size // 2)
            elif harm == "delete":
                path.unlink()
            else:
                os.truncate(path, size - 1 if harm == "truncate" else 0)
            assert ranks.call(_resumed_from, config) == [before.name] * 2
            assert name.removesuffix(".sha256") in ranks.call(_passed_over, config)[0]
            assert ranks.call(run, config) == wanted


def _resumed_from(topology, config):
    return _chosen(topology, config)[0].folder.name


def _passed_over(topology, config):
    return "".join(_chosen(topology, config)[1].values())


def _chosen(topology, config):
    candidates = CheckpointCandidates(config, Dataset(config.data))
    stored = candidates.choose(True, topology, dist.new_group(backend="gloo"))
    return stored, candidates.damaged


def _with_full_disk(topology, config, after):
    """A run whose disk is full on the last rank after so many writes, and for the five after these."""
    writes, real = [0], HashedFile.write

    def write(file, data):
        writes[0] += 1
        if topology.rank == topology.world_size - 1 and after < writes[0] <= after + 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, data)

    HashedFile.write, messages, handler = write, [], logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("dist_imsr").addHandler(handler)
    try:
        return run(topology, config), messages
    finally:
        HashedFile.write = real
        logging.getLogger("dist_imsr").removeHandler(handler)


def test_a_full_disk_keeps_the_last_good_checkpoint_and_the_run(folder, tmp_path):
    config = _config(folder, tmp_path / "run", checkpoint=CheckpointConfig(every_steps=2, keep_last=1))
    with ranks_on(2) as ranks:
        wanted = ranks.call(run, replace(config, run_dir=tmp_path / "whole"))
        for after in (0, 300, 900):
            results = ranks.call(_with_full_disk, replace(config, run_dir=tmp_path / str(after)), after)
            assert [left for left, _ in results] == wanted
            assert 1 <= len(results[0][1]) <= 5
            for message in results[0][1]:
                assert "was not written: rank 1: [Errno 28] No space left on device" in message
                assert ("the last good one is missing" in message) == (after == 0)
            assert not results[1][1]
            assert [path.name for path in (tmp_path / str(after) / "checkpoints").iterdir()] == [
                "span=03-epoch=000-step=000000"
            ]


@pytest.mark.parametrize(
    ("key", "value"), [("every_steps", -1), ("keep_last", 0), ("keep_spans", -1)], ids=lambda value: str(value)
)
def test_impossible_values_are_refused(key, value):
    with pytest.raises(ValueError, match=rf"checkpoint\.{key}"):
        CheckpointConfig(**{key: value})


def test_random_numbers_have_no_state(folder, tmp_path):
    """Generators need no place in a checkpoint: another state of torch's own changes nothing."""
    config = _config(folder, tmp_path / "a")
    with ranks_on(2) as ranks:
        assert ranks.call(_stirred, config, 1) == ranks.call(_stirred, replace(config, run_dir=tmp_path / "b"), 2)


def _stirred(topology, config, seed):
    torch.manual_seed(seed)
    return run(topology, config)


def test_a_checkpoint_of_another_folder_starts_a_branch_that_resumes(folder, tmp_path):
    config = _config(folder, tmp_path / "run")
    with ranks_on(2) as ranks:
        wanted = ranks.call(run, config)
        older = newest_first(config.run_dir / "checkpoints")[5]
        branch = replace(config, run_dir=tmp_path / "branch", resume=str(older))
        assert ranks.call(run, branch) == wanted
        shutil.copytree(older, branch.run_dir / "backup" / older.name)
        for named in (older, branch.run_dir / "backup" / older.name):  # its own are newer
            assert ranks.call(run, replace(branch, resume=str(named))) == wanted
        with pytest.raises(RuntimeError, match="the newest checkpoint of"):
            ranks.call(run, replace(config, resume=str(older)))


def test_without_checkpoints_nothing_is_kept_or_removed(folder, tmp_path):
    config = _config(folder, tmp_path / "run", checkpoint=CheckpointConfig(enabled=False))
    with ranks_on(2) as ranks:
        wanted = ranks.call(run, config)
        assert not (config.run_dir / "checkpoints").exists()
        assert ranks.call(run, replace(config, run_dir=tmp_path / "kept", checkpoint=EVERY)) == wanted
        kept = newest_first(tmp_path / "kept" / "checkpoints")
        for path in kept[:5]:
            shutil.rmtree(path)
        assert ranks.call(run, replace(config, run_dir=tmp_path / "kept")) == wanted
        assert newest_first(tmp_path / "kept" / "checkpoints") == kept[5:]


def _copies(topology, config):
    """The numbers of earlier copies of the weights that were alive whenever early stopping made one."""
    real, made, alive = Recommender.snapshot, [], []

    def counted(self):
        alive.append(sum(copy() is not None for copy in made))
        taken = real(self)
        made.append(weakref.ref(taken.tensors["catalogue.weight"].values))
        return taken

    with patch.object(Recommender, "snapshot", counted):
        run(topology, config)
    return alive


def test_early_stopping_holds_one_copy_at_a_time(folder, tmp_path):
    config = _config(folder, tmp_path / "run", training=TrainingConfig(epochs=4, incremental_epochs=4, patience=4))
    for alive in run_ranks(2, _copies, config):
        assert len(alive) > 4
        assert max(alive) == 0

import errno
import hashlib
import json
import os
import pickle
import shutil
from collections import namedtuple

import pyarrow as pa
import pytest
import torch
import torch.distributed as dist

from dist_imsr.distributed.rows import ShardRows
from dist_imsr.files import HashedFile, OtherFormat
from dist_imsr.training.checkpoint_storage import CHECKSUM, MANIFEST
from dist_imsr.training.storage import Stored, store
from tests.ranks import run_ranks

WHOLE = {
    "matrix": torch.randn(23, 3),
    "vector": torch.randn(9, dtype=torch.float64),
    "half": torch.randn(11, 2).bfloat16(),
    "whole": torch.arange(7),
}


def _part(total, rank, ranks):
    """Uneven rows; the last of three ranks or more has none."""
    share = ranks - (ranks > 2)
    cuts = [total * min(place, share) ** 2 // share**2 for place in range(ranks + 1)]
    return cuts[rank], cuts[rank + 1]


def _rows(topology, fill):
    rows = {}
    for name, tensor in WHOLE.items():
        first, end = (0, len(tensor)) if name == "whole" else _part(len(tensor), topology.rank, topology.world_size)
        values = tensor[first:end].clone() if fill else torch.zeros_like(tensor[first:end])
        rows[name] = ShardRows(values, first, len(tensor), saved=name != "whole" or topology.rank == 0)
    return rows


def _save(topology, folder):
    tables = {f"users/{topology.rank}.arrow": pa.record_batch({"user": pa.array([topology.rank, 7])})}
    facts = {"values": [1.5, "two"]}
    store(folder, _rows(topology, True), tables, facts, topology.rank, dist.new_group(backend="gloo"))


def _load(topology, folder):
    stored, rows = Stored(folder), _rows(topology, False)
    stored.verify(topology.rank, topology.world_size)
    stored.load(rows, dist.new_group(backend="gloo"))
    wanted = _rows(topology, True)
    return all(torch.equal(rows[name].values, wanted[name].values) for name in WHOLE)


@pytest.mark.parametrize(("saving", "loading"), [(1, 3), (2, 2), (3, 2), (4, 1)])
def test_any_ranks_read_what_any_ranks_wrote(tmp_path, saving, loading):
    folder = tmp_path / "checkpoint"
    run_ranks(saving, _save, folder)
    assert run_ranks(loading, _load, folder) == [True] * loading
    stored = Stored(folder)
    assert stored.manifest["values"] == [1.5, "two"]
    assert stored.shape("half") == (11, 2)
    for rank in range(saving):
        assert stored.table(f"users/{rank}.arrow")["user"].to_pylist() == [rank, 7]
    assert os.listdir(tmp_path) == ["checkpoint"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoint"
    run_ranks(2, _save, folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoint")


@pytest.mark.parametrize("name", [MANIFEST, CHECKSUM])
def test_every_byte_of_the_manifest_counts(folder, name):
    path, content = folder / name, (folder / name).read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        with pytest.raises(ValueError, match=r"manifest\.json"):
            Stored(folder)


def test_every_byte_of_every_other_file_counts(folder):
    names = Stored(folder).manifest["files"]
    assert len(names) == 4
    for name in names:
        path, content = folder / name, (folder / name).read_bytes()
        for place in range(0, len(content), 7):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
            with pytest.raises(ValueError, match=name):
                Stored(folder).verify()
        for size in (0, len(content) - 1):
            path.write_bytes(content[:size])
            with pytest.raises(ValueError, match=name):
                Stored(folder)
        path.unlink()
        with pytest.raises(ValueError, match=rf"{name} is missing"):
            Stored(folder)
        path.write_bytes(content)


def test_ranks_share_the_verification(folder):
    stored = Stored(folder)
    for name in stored.manifest["files"]:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        found = 0
        for part in range(3):
            try:
                stored.verify(part, 3)
            except ValueError as error:
                found += name in str(error)
        assert found == 1
        (folder / name).write_bytes(content)


def _rewrite(folder, **changes):
    text = json.dumps(json.loads((folder / MANIFEST).read_text()) | changes).encode()
    (folder / MANIFEST).write_bytes(text)
    (folder / CHECKSUM).write_text(f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n")


def test_other_formats_and_folders_are_refused(folder):
    _rewrite(folder, files={"../secret": {"bytes": 1}})
    with pytest.raises(ValueError, match="outside its folder"):
        Stored(folder)
    _rewrite(folder, format_version=4)
    with pytest.raises(OtherFormat, match="upgrade"):
        Stored(folder)
    _rewrite(folder, format_version=1)
    with pytest.raises(OtherFormat, match="computed other scores: prepare the data again, and train from"):
        Stored(folder)
    _rewrite(folder, format_version=2)
    with pytest.raises(OtherFormat, match="computed other scores: train from the beginning, in another run_dir"):
        Stored(folder)
    _rewrite(folder, format_version=3, files=3)
    with pytest.raises(ValueError, match=r"manifest\.json"):
        Stored(folder)


def test_no_file_is_a_pickle(folder, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a pickle was read")

    for module, name in ((pickle, "load"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    stored = Stored(folder)
    stored.verify()
    stored.table("users/0.arrow")
    for path in folder.rglob("*"):
        assert path.is_dir() or not path.read_bytes().startswith((b"\x80", b"PK"))


def _save_with_fault(topology, folder):
    real = HashedFile.write

    def write(file, data):
        if topology.rank == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, data)

    HashedFile.write = write
    try:
        _save(topology, folder)
    except OSError as error:
        return str(error)
    finally:
        HashedFile.write = real


def test_all_ranks_learn_of_a_fault_of_one_and_the_old_checkpoint_stays(folder):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    errors = run_ranks(3, _save_with_fault, folder)
    assert errors == ["rank 1: [Errno 28] No space left on device"] * 3
    assert {path: path.read_bytes() for path in folder.parent.rglob("*") if path.is_file()} == before


def test_a_checkpoint_of_the_same_name_is_replaced_by_a_version_of_it(folder):
    run_ranks(1, _save, folder)
    assert os.listdir(folder.parent) == ["checkpoint.1"]
    run_ranks(1, _save, folder)
    assert os.listdir(folder.parent) == ["checkpoint.2"]
    assert run_ranks(2, _load, folder.with_name("checkpoint.2")) == [True] * 2


def _save_on_small_disk(topology, folder):
    shutil.disk_usage = lambda _: namedtuple("Usage", "free")(5 << 20)
    try:
        _save(topology, folder)
    except OSError as error:
        return str(error)


def test_too_small_a_disk_is_seen_before(tmp_path):
    errors = run_ranks(2, _save_on_small_disk, tmp_path / "checkpoint", fresh=True)
    assert len(set(errors)) == 1
    assert "needs 0 MiB and 64 to spare, but 5 are free" in errors[0]
    assert os.listdir(tmp_path) == []

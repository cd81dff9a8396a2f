import hashlib
import json

import numpy as np
import pytest

from dist_imsr.data.dataset import DataConfig, Dataset, held_out
from tests.prepared import drawn_history, write_dataset


@pytest.fixture
def folder(tmp_path):
    return write_dataset(tmp_path / "data", drawn_history())


def _edit(folder, **changes):
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_reads_what_was_written(folder):
    dataset, history = Dataset(DataConfig(folder)), drawn_history()
    assert (dataset.users, dataset.buckets, dataset.spans) == (40, 8, 4)
    for span in range(4):
        seen = {}
        for bucket in range(8):
            sequences = dataset.sequences(span, bucket)
            for user, first, last in zip(sequences.users, sequences.offsets, sequences.offsets[1:], strict=False):
                seen[int(user)] = sequences.items[first:last].tolist()
                assert sequences.times[first:last].tolist() == list(range(last - first))
                earlier = {item for items in history[user][:span] for item in items}
                assert sequences.met_before[first:last].tolist() == [item in earlier for item in seen[user]]
        assert seen == {user: spans[span] for user, spans in history.items() if spans[span]}


def test_held_out():
    assert held_out(np.arange(6)).tolist() == [0, 0, 0, 2, 2, 2]


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("x")])
def test_no_data_set(tmp_path, make):
    make(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"data\.path.*nothing.*launch/prepare\.py"):
        Dataset(DataConfig(tmp_path / "nothing"))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_no_manifest(folder, text):
    (folder / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match=r"dataset\.json is no manifest"):
        Dataset(DataConfig(folder))


def test_newer_format(folder):
    _edit(folder, format_version=99)
    with pytest.raises(ValueError, match=r"format 99.*upgrade"):
        Dataset(DataConfig(folder))


def test_missing_short_and_flipped_files(folder):
    path = folder / "span=1" / "bucket=003.arrow"
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(ValueError, match=r"bucket=003\.arrow is missing"):
        Dataset(DataConfig(folder))
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"bucket=003\.arrow has .* instead of"):
        Dataset(DataConfig(folder))
    path.write_bytes(bytes(len(whole)))
    dataset = Dataset(DataConfig(folder))
    with pytest.raises(ValueError, match=r"bucket=003\.arrow is no span file"):
        dataset.sequences(1, 3)


def test_checksums_on_request(folder):
    files = json.loads((folder / "dataset.json").read_text())["files"]
    for name, entry in files.items():
        entry["sha256"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    _edit(folder, files=files)
    Dataset(DataConfig(folder, verify=True))
    path = folder / "span=0" / "bucket=000.arrow"
    flipped = bytearray(path.read_bytes())
    flipped[-100] ^= 1
    path.write_bytes(flipped)
    Dataset(DataConfig(folder))
    with pytest.raises(ValueError, match=r"bucket=000\.arrow does not match its checksum"):
        Dataset(DataConfig(folder, verify=True))


def test_paths_stay_inside(folder):
    _edit(folder, files={"../outside.arrow": {"bytes": 0, "sha256": "", "rows": 0}})
    with pytest.raises(ValueError, match="outside its folder"):
        Dataset(DataConfig(folder))


def test_a_table_without_a_column_is_refused_in_one_line(folder):
    dataset = Dataset(DataConfig(folder))
    with pytest.raises(ValueError, match=r"items\.parquet is no table of a prepared data set") as refusal:
        dataset.popularity(range(3))
    assert "\n" not in str(refusal.value)

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.data.prepare import PrepareConfig, prepare
from tests.prepared import SPAN_SECONDS, drawn_history, write_dataset


@pytest.fixture
def folder(tmp_path):
    return write_dataset(tmp_path / "data", drawn_history())


def _edit(folder, **changes):
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_reads_what_was_written(folder):
    dataset, history = Dataset(DataConfig(folder, verify=True)), drawn_history()
    active = [user for user, spans in history.items() if any(spans)]
    assert (dataset.users, dataset.buckets, dataset.spans) == (len(active), 8, 4)
    for span in range(4):
        seen = {}
        for bucket in range(8):
            sequences = dataset.sequences(span, bucket)
            for user, first, last in zip(sequences.users, sequences.offsets, sequences.offsets[1:], strict=False):
                seen[int(user)] = sequences.items[first:last].tolist()
                assert sequences.times[first:last].tolist() == [
                    SPAN_SECONDS * span + place for place in range(last - first)
                ]
                earlier = {item for items in history[user][:span] for item in items}
                assert sequences.met_before[first:last].tolist() == [item in earlier for item in seen[user]]
        assert seen == {user: spans[span] for user, spans in history.items() if spans[span]}


def test_what_is_known_by_the_end_of_a_span(folder):
    dataset, history = Dataset(DataConfig(folder)), drawn_history()
    users = np.random.default_rng(0).permutation([*history, 800])  # the last one is new
    for span in range(-1, 4):
        known = [user in history and any(history[user][: span + 1]) for user in users]
        assert dataset.known(users, span).tolist() == known
        items = [item for spans in history.values() for part in spans[: span + 1] for item in part]
        assert span < 0 or dataset.items_by_span[span] == max(items) + 1
    counts = Counter(item for spans in history.values() for part in spans[:3] for item in part)
    assert dataset.popularity(range(7, 50), 2).tolist() == [counts[item] for item in range(7, 50)]
    assert dataset.popularity(range(7, 50), 1).tolist() != dataset.popularity(range(7, 50), 2).tolist()


def test_raw_ids_and_back(tmp_path):
    (tmp_path / "log.csv").write_text("user,item,time\n" + "".join(f"u{n % 9},i{n % 7},{n}\n" for n in range(40)))
    options = {"min_interactions": 1, "spans": 2, "buckets": 4}
    prepare(
        PrepareConfig(source="csv", input=tmp_path / "log.csv", output=tmp_path / "data", **options),
        Console(quiet=True),
    )
    dataset = Dataset(DataConfig(tmp_path / "data"))
    names = [f"u{n}" for n in range(9)]
    users = dataset.user_ids(pa.array(["u7", "nobody", None, *names]))
    assert users[1:3].tolist() == [-1, -1]
    assert len({*users.tolist()}) == 10
    assert dataset.raw_ids("users", users[3:]).to_pylist() == names
    assert dataset.raw_ids("users", users[:1]).to_pylist() == ["u7"]
    assert dataset.raw_ids("items", np.array([6, 0, 0])).to_pylist() == ["i6", "i0", "i0"]


def test_a_digest_covers_the_spans_so_far(folder):
    before = Dataset(DataConfig(folder))
    spans = json.loads((folder / "dataset.json").read_text())["spans"]
    spans[2]["digest"] = "0"
    _edit(folder, spans=spans)
    after = Dataset(DataConfig(folder))
    same = [before.digest_until(span) == after.digest_until(span) for span in range(4)]
    assert same == [True, True, False, False]


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("x")])
def test_no_data_set(tmp_path, make):
    make(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"^data\.path: .*nothing.*launch/prepare\.py"):
        Dataset(DataConfig(tmp_path / "nothing"))
    with pytest.raises(ValueError, match=r"^append: .*nothing.*launch/prepare\.py"):
        PrepareConfig(append=tmp_path / "nothing")


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
    path = folder / "span=0" / "bucket=000.arrow"
    flipped = bytearray(path.read_bytes())
    flipped[-100] ^= 1
    path.write_bytes(flipped)
    Dataset(DataConfig(folder))
    with pytest.raises(ValueError, match=r"bucket=000\.arrow does not match its checksum"):
        Dataset(DataConfig(folder, verify=True))


def test_manifests_are_always_checked(folder):
    path = folder / "span=2" / "manifest.json"
    path.write_text(path.read_text().replace("4", "5"))
    with pytest.raises(ValueError, match=r"span=2/manifest\.json does not match its checksum: prepare the data again"):
        Dataset(DataConfig(folder))


def test_paths_stay_inside(folder):
    _edit(folder, files={"../outside.arrow": {"bytes": 0, "sha256": "", "rows": 0}})
    with pytest.raises(ValueError, match="outside its folder"):
        Dataset(DataConfig(folder))


def test_a_table_without_a_column_is_refused_in_one_line(folder):
    dataset = Dataset(DataConfig(folder))
    pq.write_table(pa.table({"item": [1]}), folder / "items" / "span=1.parquet")
    with pytest.raises(ValueError, match=r"items/span=1\.parquet is no table of a prepared data set") as refusal:
        dataset.raw_ids("items", np.arange(3))
    assert "\n" not in str(refusal.value)

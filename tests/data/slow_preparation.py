"""Design.md section 6 in plain Python, one row at a time, and a reading of prepared folders in the same form."""

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = tuple[Any, Any, int]  # user, item, time
Sequences = dict[tuple[int, int], dict[int, list[tuple[int, int, bool]]]]  # span, bucket -> user -> item, time, met


def shared_edges(rows: Sequence[Row], min_interactions: int, alpha: float, spans: int) -> list[int] | None:
    """The first second of each span and the end of the last one, in the paper's cut; None if time is too short."""
    counts = Counter(user for user, _, _ in rows)
    times = [when for user, _, when in rows if counts[user] >= min_interactions]
    first, last = min(times), max(times)
    pretraining = Fraction(str(alpha)) * (last - first)
    width = (last - first - pretraining) / spans
    edges = [first, *(math.ceil(first + pretraining + width * span) for span in range(spans)), last]
    return [*edges[:-1], last + 1] if len(set(edges)) == len(edges) else None


def slowly(
    rows: Sequence[Row], edges: Sequence[int], min_interactions: int, buckets: int, so_far: bool = False
) -> dict[str, Any]:
    """What a preparation with given edges writes.

    Args:
        rows: of the log, in its order.
        edges: the first second of each span and the end of the last one.
        min_interactions: of a user.
        buckets: their number.
        so_far: whether a user's rows wait until there are enough of them, instead of counting from the first one on.
    """
    log = sorted(rows, key=lambda row: row[2])  # stable: ties stay
    times_of = defaultdict(list)
    for user, _, when in log:
        times_of[user].append(when)
    decisive = min_interactions - 1 if so_far else 0  # the row with which a user enters
    entered = {user: times[decisive] for user, times in times_of.items() if len(times) >= min_interactions}
    spans = len(edges) - 1

    def span_of(when: int) -> int:
        return max(span for span in range(spans) if when >= edges[span])

    ids: dict[Any, int] = {}
    of_bucket: Counter[int] = Counter()
    for user in sorted(entered, key=entered.__getitem__):  # stable: in the order of the first rows
        bucket = int(hashlib.md5(str(user).encode()).hexdigest()[:16], 16) % buckets
        ids[user] = of_bucket[bucket] * buckets + bucket
        of_bucket[bucket] += 1
    counted = [(user, item, when, max(when, entered[user])) for user, item, when in log if user in entered]
    appeared = {}
    for _, item, _, since in sorted(counted, key=lambda row: row[3]):
        appeared.setdefault(item, since)
    numbers = {item: number for number, item in enumerate(appeared)}

    sequences: Sequences = {(span, bucket): defaultdict(list) for span in range(spans) for bucket in range(buckets)}
    item_counts = [Counter[int]() for _ in range(spans)]
    met: dict[tuple[Any, Any], int] = {}
    for user, item, _, since in sorted(counted, key=lambda row: row[3]):
        met.setdefault((user, item), span_of(since))
    for user, item, when, since in counted:
        span = span_of(since)
        sequences[span, ids[user] % buckets][ids[user]].append((numbers[item], when, met[user, item] < span))
        item_counts[span][numbers[item]] += 1

    entries = []
    for span in range(spans):
        known, earlier = ({user for user in ids if span_of(entered[user]) <= one} for one in (span, span - 1))
        items, items_before = (sum(span_of(since) <= one for since in appeared.values()) for one in (span, span - 1))
        lengths = {user: len(rows) for bucket in range(buckets) for user, rows in sequences[span, bucket].items()}
        earlier_ids = {ids[user] for user in earlier}
        split = {user for user, length in lengths.items() if length >= 3}
        entries.append(
            {
                "interactions": sum(lengths.values()),
                "active_users": len(lengths),
                "trainable_users": sum(length == 2 or length >= 4 for length in lengths.values()),
                "split_users": len(split),
                "tested_users": len(split & earlier_ids),
                "interactions_with_new_items": sum(
                    count for item, count in item_counts[span].items() if item >= items_before
                ),
                "interactions_of_returning_users": sum(
                    length for user, length in lengths.items() if user in earlier_ids
                ),
                "items": items,
                "users": [sum(ids[user] % buckets == bucket for user in known) for bucket in range(buckets)],
            }
        )
    return {
        "edges": [*edges],
        "entries": entries,
        "users": [sorted((ids[user], user) for user in ids if span_of(entered[user]) == span) for span in range(spans)],
        "items": [
            [(numbers[item], item) for item, since in appeared.items() if span_of(since) == span]
            for span in range(spans)
        ],
        "sequences": {key: dict(value) for key, value in sequences.items()},
        "item_counts": [dict(sorted(counts.items())) for counts in item_counts],
        "waiting": [row for row in log if row[0] not in entered] if min_interactions > 1 else None,
    }


_COUNTS = (
    "interactions",
    "active_users",
    "trainable_users",
    "split_users",
    "tested_users",
    "interactions_with_new_items",
    "interactions_of_returning_users",
    "items",
    "users",
)


def read(folder: Path) -> dict[str, Any]:
    """A prepared folder in the format of `slowly`; all of its files must be those of its manifests."""
    manifest = json.loads((folder / "dataset.json").read_text())
    entries, buckets = manifest["spans"], manifest["n_buckets"]
    check_manifests(folder, manifest)
    for number, entry in enumerate(entries):
        assert entry["name"] == str(number)
        assert (entry["met_since"], entry["retired"]) == (0, False)
    sequences: Sequences = {}
    for span in range(len(entries)):
        for bucket in range(buckets):
            batch = _batch(folder / f"span={span}" / f"bucket={bucket:03d}.arrow")
            users = batch["user"].to_pylist()
            assert users == sorted(users)
            lists = zip(*(batch[name].to_pylist() for name in ("items", "times", "met_before")), strict=True)
            rows = [list(zip(*columns, strict=True)) for columns in lists]
            sequences[span, bucket] = dict(zip(users, rows, strict=True))
    waiting = folder / "waiting" / f"span={len(entries) - 1}.parquet"
    return {
        "edges": [*(entry["first_second"] for entry in entries), entries[-1]["end_second"]],
        "entries": [{key: entry[key] for key in _COUNTS} for entry in entries],
        **{
            table: [_rows(folder / table / f"span={span}.parquet", table[:-1], "raw") for span in range(len(entries))]
            for table in ("users", "items")
        },
        "sequences": sequences,
        "item_counts": [_item_counts(folder / f"span={span}" / "item_counts.arrow") for span in range(len(entries))],
        "waiting": _rows(waiting, "user", "item", "time") if waiting.exists() else None,
    }


def check_manifests(folder: Path, manifest: dict[str, Any]) -> None:
    """Asserts that the manifests name each file of a new data set, and that checksums and edges are right."""
    files, ends = dict(manifest["files"]), [entry["end_second"] for entry in manifest["spans"]]
    assert [entry["first_second"] for entry in manifest["spans"][1:]] == ends[:-1]
    for entry in manifest["spans"]:
        name = f"span={entry['name']}/manifest.json"
        files[name] = entry["manifest"]
        assert entry["digest"] == entry["manifest"]["sha256"]
        of_span = json.loads((folder / name).read_text())
        files |= of_span.pop("files")
        assert of_span == {key: entry[key] for key in of_span}
        assert {*entry} - {*of_span} == {"name", "digest", "manifest", "retired"}
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {*files, "dataset.json"}
    for name, entry in files.items():
        content = (folder / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["bytes"], entry["sha256"])
        if name.endswith(".arrow"):
            assert _batch(folder / name).num_rows == entry["rows"]
        elif name.endswith(".parquet"):
            assert pq.read_metadata(folder / name).num_rows == entry["rows"]


def names_of(prepared: dict[str, Any], table: str) -> dict[int, Any]:
    """The raw ids by id, of what `slowly` or `read` returned."""
    return {number: raw for part in prepared[table] for number, raw in part}


def _batch(path: Path) -> pa.RecordBatch:
    with pa.ipc.open_file(pa.memory_map(str(path))) as file:
        assert file.num_record_batches == 1
        return file.get_batch(0)


def _item_counts(path: Path) -> dict[int, int]:
    batch = _batch(path)
    assert batch.schema.names == ["item", "interactions"]
    return dict(zip(*(column.to_pylist() for column in batch.columns), strict=True))


def _rows(path: Path, *columns: str) -> list[tuple[Any, ...]]:
    table = pq.ParquetFile(path).read()
    assert table.column_names == [*columns]
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))

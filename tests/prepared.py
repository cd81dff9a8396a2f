"""Writes small prepared data sets with plain loops, independent of the code that prepares real ones."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dist_imsr.data.manifest import FORMAT_VERSION

History = dict[int, list[list[int]]]  # user -> the items of each span
SPAN_SECONDS = 1000


def drawn_history(users: int = 40, items: int = 60, spans: int = 4, longest: int = 9, seed: int = 0) -> History:
    """Users of two tastes each, not all of them active in each span; later spans have more items.

    Users are numbered by their first active span, as a preparation does.
    """
    draw = np.random.default_rng(seed)
    drawn = []
    for _ in range(users):
        tastes = draw.integers(items // 4, size=2)
        drawn.append(
            [
                [
                    int(draw.choice(tastes) + draw.integers(4) * (items // 4)) * (span + 1) // spans
                    for _ in range(draw.integers(longest + 1) * (draw.random() < 0.8))
                ]
                for span in range(spans)
            ]
        )
    drawn.sort(key=_first_span)
    return dict(enumerate(drawn))


def write_dataset(folder: Path, history: History, buckets: int = 8, spans: int | None = None) -> Path:
    """Writes users, whose ids are their raw ids; user and item ids must appear in the order of spans.

    Of the history's spans only the first ``spans`` are written, all by default; more of them later are an append: the
    files of a span do not depend on later spans.
    """
    spans = spans or len(history[next(iter(history))])
    entries = []
    for span in range(spans):
        before = {user for user in history if _first_span(history[user]) < span}
        known = {user for user in history if _first_span(history[user]) <= span}
        locals_ = [sorted(user // buckets for user in known if user % buckets == bucket) for bucket in range(buckets)]
        assert all(ids == list(range(len(ids))) for ids in locals_), "users are not numbered by their first span"
        items_known = [
            max((item for user in history.values() for items in user[:end] for item in items), default=-1) + 1
            for end in (span, span + 1)
        ]
        active = {user: history[user][span] for user in sorted(history) if history[user][span]}
        files = {}
        for bucket in range(buckets):
            users = [user for user in active if user % buckets == bucket]
            earlier = [{item for items in history[user][:span] for item in items} for user in users]
            met = [[item in past for item in history[user][span]] for user, past in zip(users, earlier, strict=True)]
            times = [[SPAN_SECONDS * span + place for place in range(len(active[user]))] for user in users]
            columns = {
                "user": pa.array(users, pa.int64()),
                "items": pa.array([active[user] for user in users], pa.list_(pa.int32())),
                "times": pa.array(times, pa.list_(pa.int64())),
                "met_before": pa.array(met, pa.list_(pa.bool_())),
            }
            files |= _write(folder, f"span={span}/bucket={bucket:03d}.arrow", columns)
        counts = np.bincount([item for items in active.values() for item in items], minlength=items_known[1])
        touched = counts.nonzero()[0]
        columns = {"item": pa.array(touched, pa.int32()), "interactions": pa.array(counts[touched], pa.int64())}
        files |= _write(folder, f"span={span}/item_counts.arrow", columns)
        new = {"users": sorted(known - before), "items": range(*items_known)}
        for table, ids in new.items():
            columns = {table[:-1]: pa.array(ids, pa.int64()), "raw": pa.array(ids, pa.int64())}
            files |= _write(folder, f"{table}/span={span}.parquet", columns)
        text = json.dumps({"files": files})
        (folder / f"span={span}" / "manifest.json").write_text(text)
        digest = hashlib.sha256(text.encode()).hexdigest()
        lengths = {user: len(items) for user, items in active.items()}
        split = [user for user, length in lengths.items() if length >= 3]
        entries.append(
            {
                "name": str(span),
                "first_second": SPAN_SECONDS * span,
                "end_second": SPAN_SECONDS * (span + 1),
                "interactions": sum(lengths.values()),
                "active_users": len(active),
                "trainable_users": sum(length == 2 or length >= 4 for length in lengths.values()),
                "split_users": len(split),
                "tested_users": len(before.intersection(split)),
                "interactions_with_new_items": int(counts[items_known[0] :].sum()),
                "interactions_of_returning_users": sum(length for user, length in lengths.items() if user in before),
                "items": items_known[1],
                "users": [len(ids) for ids in locals_],
                "digest": digest,
                "manifest": {"bytes": len(text), "sha256": digest},
            }
        )
    manifest = {
        "format_version": FORMAT_VERSION,
        "source": "csv",
        "options": {},
        "n_buckets": buckets,
        "spans": entries,
        "files": {},
        "preparations": [],
    }
    (folder / "dataset.json").write_text(json.dumps(manifest))
    return folder


def retire_before(folder: Path, span: int) -> None:
    """Removes the rows of the spans before one."""
    manifest = json.loads((folder / "dataset.json").read_text())
    for number, entry in enumerate(manifest["spans"][:span]):
        entry["retired"] = True
        for path in (folder / f"span={number}").glob("bucket=*.arrow"):
            path.unlink()
    (folder / "dataset.json").write_text(json.dumps(manifest))


def _first_span(spans: list[list[int]]) -> int:
    return next((span for span, items in enumerate(spans) if items), len(spans))


def _write(folder: Path, name: str, columns: dict[str, pa.Array]) -> dict[str, dict[str, Any]]:
    """Writes an Arrow or Parquet file; returns its entry in the manifest."""
    path, table = folder / name, pa.table(columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as file:
            file.write_batch(pa.record_batch(columns))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {name: {"bytes": path.stat().st_size, "sha256": digest, "rows": len(table)}}

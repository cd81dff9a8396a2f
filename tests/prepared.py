"""Writes small prepared data sets with plain loops, independent of the code that prepares real ones."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dist_imsr.data.dataset import FORMAT_VERSION

History = dict[int, list[list[int]]]  # user -> the items of each span


def drawn_history(users: int = 40, items: int = 60, spans: int = 4, longest: int = 9, seed: int = 0) -> History:
    """Users of two tastes each, not all of them active in each span; later spans have more items."""
    draw = np.random.default_rng(seed)
    history = {}
    for user in range(users):
        tastes = draw.integers(items // 4, size=2)
        history[user] = [
            [
                int(draw.choice(tastes) + draw.integers(4) * (items // 4)) * (span + 1) // spans
                for _ in range(draw.integers(longest + 1) * (draw.random() < 0.8))
            ]
            for span in range(spans)
        ]
    return history


def write_dataset(folder: Path, history: History, buckets: int = 8) -> Path:
    """Writes users ``0..n-1`` in ``buckets`` contiguous buckets; item ids must appear in the order of spans."""
    spans = len(history[0])
    offsets = np.linspace(0, len(history), buckets + 1).astype(int).tolist()
    known = np.maximum.accumulate(
        [max((item for user in history.values() for item in user[span]), default=0) + 1 for span in range(spans)]
    )
    files = {}
    for span in range(spans):
        for bucket in range(buckets):
            users = [user for user in range(offsets[bucket], offsets[bucket + 1]) if history[user][span]]
            earlier = [{item for items in history[user][:span] for item in items} for user in users]
            met = [[item in past for item in history[user][span]] for user, past in zip(users, earlier, strict=True)]
            batch = pa.record_batch(
                {
                    "user": pa.array(users, pa.int32()),
                    "items": pa.array([history[user][span] for user in users], pa.list_(pa.int32())),
                    "times": pa.array([list(range(len(history[user][span]))) for user in users], pa.list_(pa.int64())),
                    "met_before": pa.array(met, pa.list_(pa.bool_())),
                }
            )
            name = f"span={span}/bucket={bucket:03d}.arrow"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with pa.ipc.new_file(folder / name, batch.schema) as file:
                file.write_batch(batch)
            files[name] = {"bytes": (folder / name).stat().st_size, "sha256": "", "rows": len(users)}
    for name, count in (("users", len(history)), ("items", int(known[-1]))):  # raw ids like the dense ones
        pq.write_table(pa.table({"raw": pa.array(range(count), pa.int64())}), folder / f"{name}.parquet")
    manifest = {
        "format_version": FORMAT_VERSION,
        "bucket_offsets": offsets,
        "items_by_span": known.tolist(),
        "files": files,
    }
    (folder / "dataset.json").write_text(json.dumps(manifest))
    return folder

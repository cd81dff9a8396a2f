"""Exports a span's results as Arrow files; each rank writes its own users and item rows."""

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import torch

from dist_imsr.distributed.catalogue import Catalogue
from dist_imsr.distributed.interest_store import InterestStore
from dist_imsr.strategies.detection import Detection, concatenate


def export_span(
    run_dir: Path,
    span: int,
    store: InterestStore,
    catalogue: Catalogue,
    items: int,
    data: str,
    detections: Sequence[Detection],
) -> None:
    """Writes one rank's files of ``run_dir/spans/span=T/``; each file appears only when it is complete.

    ``interests-R.arrow``: user, born (the span that created the interest), vector, in the order of ids and slots.
    ``items-R.arrow``: item, vector. ``detections-R.arrow``: user, fit (compared with c1), puzzled; a user has a row for
    each detection. The metadata of each file are the number of ranks and the data's digest.

    Args:
        run_dir: the run's folder.
        span: the span that was trained.
        store: this rank's interests.
        catalogue: this rank's rows.
        items: number of known items.
        data: the digest of the prepared data up to the span.
        detections: results of the detector in this span, one for each run of it.

    Raises:
        OSError: if a file cannot be written.
    """
    folder = run_dir / "spans" / f"span={span}"
    folder.mkdir(parents=True, exist_ok=True)
    known = range(catalogue.rows.start, max(catalogue.rows.start, min(catalogue.rows.stop, items)))
    users, fit, puzzled = concatenate([one.cpu() for one in detections])
    tables = {
        "interests": {"user": store.owned.users(store.owners), "born": store.birth_span, "vector": store.values},
        "items": {"item": torch.arange(known.start, known.stop), "vector": catalogue.flushed_weight()[: len(known)]},
        "detections": {"user": users, "fit": fit, "puzzled": puzzled},
    }
    for name, columns in tables.items():
        path = folder / f"{name}-{catalogue.topology.rank:03d}.arrow"
        partial = path.with_suffix(".partial")
        batch = pa.record_batch({key: column(values) for key, values in columns.items()})
        batch = batch.replace_schema_metadata({"ranks": str(catalogue.topology.world_size), "data": data})
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as file:
            file.write_batch(batch)
        os.replace(partial, path)


def column(values: torch.Tensor) -> pa.Array:
    """A tensor ``[n]`` as a column, or ``[n, d]`` as one of lists; it shares the memory of a tensor on the host."""
    flat = pa.array(values.detach().flatten().numpy(force=True))
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])

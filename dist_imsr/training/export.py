"""The result of a span as Arrow files; each rank writes its own users and item rows."""

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import torch

from dist_imsr.distributed.catalogue import Catalogue
from dist_imsr.distributed.interest_store import InterestStore
from dist_imsr.strategies.detection import Detection


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

    ``interests-R.arrow``: user, born (the span of an interest's birth), vector, in the order of users and slots.
    ``items-R.arrow``: item, vector. ``detections-R.arrow``: user, fit (which the detector compares with c1), puzzled; a
    user has a row for each detection. Each file's metadata hold the number of ranks and the data's digest.

    Args:
        run_dir: the run's folder.
        span: the span that was trained.
        store: this rank's interests.
        catalogue: this rank's rows.
        items: number of known items, whose ids are below it.
        data: the digest of the prepared data.
        detections: results of the detector in this span, one for each time that it ran.

    Raises:
        OSError: if a file cannot be written.
    """
    folder = run_dir / "spans" / f"span={span}"
    folder.mkdir(parents=True, exist_ok=True)
    known = range(catalogue.rows.start, max(catalogue.rows.start, min(catalogue.rows.stop, items)))
    nobody = Detection(torch.empty(0, dtype=torch.int64), torch.empty(0), torch.empty(0, dtype=torch.bool))
    users, fit, puzzled = (
        torch.cat([part.cpu() for part in column]) for column in zip(nobody, *detections, strict=True)
    )
    tables = {
        "interests": {"user": store.owners + store.first_user, "born": store.birth_span, "vector": store.values},
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
    """A tensor ``[n]``, or ``[n, d]`` for lists of d numbers, as a column; on the host both share their memory."""
    flat = pa.array(values.detach().flatten().numpy(force=True))
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])

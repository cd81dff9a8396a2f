"""What a span leaves, as Arrow files that any tool opens: a rank writes its own users and rows."""

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
    """Writes one rank's part of ``run_dir/spans/span=T/``; each file appears whole.

    ``interests-R.arrow``: user, birth_span (the span of an interest's birth), vector, in the order of users and slots.
    ``items-R.arrow``: item, vector. ``detections-R.arrow``: user, fit (what the detector compares with c1),
    puzzled; a user has a row for each detection. Each file's metadata tell how many ranks wrote one, over which data.

    Args:
        run_dir: the run's folder.
        span: the span that was trained.
        store: this rank's interests.
        catalogue: this rank's rows.
        items: ids below it are known.
        data: the digest of the prepared data.
        detections: what the detector found in the span, one for each time that it looked.

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
    """A tensor as a column, sharing its memory where it is on the host.

    Args:
        values: ``[n]``, or ``[n, d]`` for lists of d numbers.

    Returns:
        ``[n]``.
    """
    flat = pa.array(values.detach().flatten().numpy(force=True))
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])

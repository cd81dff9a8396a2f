"""Exports a span's results as Arrow files; each rank writes its own users and item rows."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import torch
import torch.distributed as dist

from dist_imsr.distributed.catalogue import Catalogue
from dist_imsr.distributed.interest_store import InterestStore
from dist_imsr.evaluation.exported import Origin
from dist_imsr.strategies.detection import Detection, concatenate
from dist_imsr.training.checkpoint_storage import PARTIAL, discard


def export_span(
    run_dir: Path,
    *,
    store: InterestStore,
    catalogue: Catalogue,
    items: int,
    detections: Sequence[Detection],
    origin: Origin,
    keep_earlier: bool,
) -> None:
    """Writes the folder ``run_dir/spans/span=T/``, which appears only when it is complete; collective.

    ``interests-R.arrow``: user, born (the span that created the interest), vector, in the order of ids and slots.
    ``items-R.arrow``: item, vector. ``detections-R.arrow``: user, fit (compared with c1), puzzled; a user has a row for
    each detection. The metadata of each file are the number of ranks and `Origin`.

    Args:
        run_dir: the run's folder.
        store: this rank's interests.
        catalogue: this rank's rows.
        items: number of known items.
        detections: results of the detector in this span, one for each run of it.
        origin: the span that was trained, and of which run.
        keep_earlier: whether the folders of other spans stay.

    Raises:
        OSError: if a file cannot be written.
    """
    folder, topology = run_dir / "spans" / f"span={origin.span}", catalogue.topology
    partial = folder.with_name(f"{PARTIAL}{folder.name}")
    known = range(catalogue.rows.start, max(catalogue.rows.start, min(catalogue.rows.stop, items)))
    users, fit, puzzled = concatenate(detections)
    tables = {
        "interests": {"user": store.owned.users(store.owners), "born": store.birth_span, "vector": store.values},
        "items": {"item": torch.arange(known.start, known.stop), "vector": catalogue.flushed_weight()[: len(known)]},
        "detections": {"user": users, "fit": fit, "puzzled": puzzled},
    }
    partial.mkdir(parents=True, exist_ok=True)
    for name, columns in tables.items():
        batch = pa.record_batch({key: column(values) for key, values in columns.items()})
        batch = batch.replace_schema_metadata(origin.metadata | {"ranks": str(topology.world_size)})
        path = partial / f"{name}-{topology.rank:03d}.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as file:
            file.write_batch(batch)
    dist.barrier()
    if topology.rank == 0:
        discard(folder, successor=partial)
        others = [path for path in folder.parent.glob("span=*") if path != folder]
        for path in [] if keep_earlier else others:
            discard(path)


def column(values: torch.Tensor) -> pa.Array:
    """A tensor ``[n]`` as a column, or ``[n, d]`` as one of lists; it shares the memory of a tensor on the host."""
    flat = pa.array(values.detach().flatten().numpy(force=True))
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])

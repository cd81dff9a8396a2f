"""Reads the Arrow files that a run exports after a span, one from each rank."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from dist_imsr.data.dataset import Dataset


def read_batch(path: Path) -> pa.RecordBatch:
    """Opens an exported Arrow file by memory map.

    Raises:
        ValueError: naming the file, if it cannot be read.
    """
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}): train again with --training.export every") from error


def read_parts(run_dir: Path, span: int, name: str, dataset: Dataset, remedy: str) -> Iterator[pa.RecordBatch]:
    """Opens the files of one kind from all ranks.

    Args:
        run_dir: the run's folder.
        span: an exported span.
        name: ``interests``, ``items`` or ``detections``.
        dataset: the data set that the run must have been trained on, up to the span.
        remedy: advice in the error message, if it was another one.

    Yields:
        One batch for each rank of the run.

    Raises:
        ValueError: naming the file that is missing or belongs to other data.
    """
    part, ranks, data = 0, 1, dataset.digest_until(span)
    while part < ranks:
        path = run_dir / "spans" / f"span={span}" / f"{name}-{part:03d}.arrow"
        batch = read_batch(path)
        metadata = {key.decode(): value.decode() for key, value in (batch.schema.metadata or {}).items()}
        if metadata.get("data") != data:
            raise ValueError(f"{path} was written over other data than {dataset.path}: {remedy}")
        ranks, part = int(metadata["ranks"]), part + 1
        yield batch

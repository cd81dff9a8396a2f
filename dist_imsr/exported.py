"""Reads what a span of a run left as Arrow files: one for each rank that wrote, over known data."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from dist_imsr.data.dataset import Dataset


def read_batch(path: Path) -> pa.RecordBatch:
    """Opens an exported file by memory map.

    Args:
        path: an Arrow file.

    Returns:
        Its one batch.

    Raises:
        ValueError: naming the file, if it cannot be read.
    """
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}): train again with --training.export every") from error


def read_parts(folder: Path, name: str, dataset: Dataset, remedy: str) -> Iterator[pa.RecordBatch]:
    """Opens what all ranks wrote of one kind.

    Args:
        folder: of a span.
        name: ``interests``, ``items`` or ``detections``.
        dataset: over which they must have been written.
        remedy: what to do where they were not.

    Yields:
        A batch for each rank of that run.

    Raises:
        ValueError: naming the file that is missing or was written over other data.
    """
    part, ranks = 0, 1
    while part < ranks:
        path = folder / f"{name}-{part:03d}.arrow"
        batch = read_batch(path)
        told = {key.decode(): value.decode() for key, value in (batch.schema.metadata or {}).items()}
        if told.get("data") != dataset.digest:
            raise ValueError(f"{path} was written over other data than {dataset.path}: {remedy}")
        ranks, part = int(told["ranks"]), part + 1
        yield batch

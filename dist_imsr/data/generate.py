"""Writes planted drift as a raw log in the format of Taobao's UserBehavior.csv, to test preparation at any size."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
from rich.console import Console

from dist_imsr.checks import require, require_file
from dist_imsr.data.drift import DriftConfig, PlantedDrift
from dist_imsr.data.raw_formats import TAOBAO_WINDOW
from dist_imsr.data.row_options import SpanOptions
from dist_imsr.data.workspace import ProgressDisplay

_CLICK = "pv"


@dataclass(kw_only=True)
class GenerateConfig(SpanOptions):
    """Writes planted drift as a raw log, which ``prepare.py --source taobao`` reads.

    Args:
        source: drift.
        drift: its options.
        output: the CSV file: user, item, category (the item's cluster), behaviour (pv), unix seconds, without a header;
            ordered by user and time. Compressed if its name ends in .gz. It appears only when complete.
        overwrite: replace an older file.
    """

    source: str
    drift: DriftConfig = field(default_factory=DriftConfig)
    output: Path
    overwrite: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.source == "drift", "source", self.source, "drift, the only generated source")
        require_file(self.output, "output")
        if self.output.exists() and not self.overwrite:
            raise ValueError(f"output: {self.output} exists; choose another or replace it with --overwrite true")


def generate(config: GenerateConfig, console: Console) -> int:
    """Writes the log; memory holds one chunk of users.

    The period of `PlantedDrift` is scaled to the nine days of the public file, and the edges of its spans with it.

    Returns:
        The number of rows.

    Raises:
        ValueError: if there are too few clusters.
        OSError: if the disk is full.
    """
    drift = PlantedDrift(config.drift, config.alpha, config.spans)
    output = config.output.resolve()
    partial = output.with_name(f".{os.getpid()}.{output.name}")  # keeps the suffix, which decides on compression
    written = 0
    try:
        with (
            ProgressDisplay(console) as display,
            display.phase("generate") as progress,
            contextlib.ExitStack() as files,
        ):
            sink = files.enter_context(pa.output_stream(str(partial)))
            style = pa.csv.WriteOptions(include_header=False, quoting_style="none")
            names = ("user", "item", "category", "behaviour", "time")
            schema = pa.schema([(name, pa.string() if name == "behaviour" else pa.int64()) for name in names])
            log = files.enter_context(pa.csv.CSVWriter(sink, schema, write_options=style))
            for chunk, columns in enumerate(_rows(drift, config.min_interactions), 1):
                users, items, times = columns
                clicks = pa.repeat(_CLICK, len(users))
                log.write(pa.record_batch([users, items, drift.clusters[items], clicks, times], schema=schema))
                written += len(users)
                progress(chunk / drift.chunks)
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return written


def _rows(drift: PlantedDrift, min_interactions: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Users, items and times of each chunk, sorted by user and time, without users of too few interactions."""
    begin, end = (int(edge) for edge in drift.edges[[0, -1]])
    first, last = TAOBAO_WINDOW
    for chunk in range(drift.chunks):
        users, items, times = (np.concatenate(parts) for parts in zip(*drift.events(chunk), strict=True))
        times = first + (times - begin) * (last - first) // (end - begin)
        order = np.lexsort((times, users))
        if len(order):
            enough = np.bincount(users - users.min()) >= min_interactions
            order = order[enough[users[order] - users.min()]]
        yield users[order], items[order], times[order]

"""Work of Spark's tasks: functions that make Arrow batches, or that write files of spans and return their entries."""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dist_imsr.data.writer import SpanFile

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

Batches = Iterator[pa.RecordBatch]
_WRITTEN = "span INT, name STRING, entry STRING, counts STRING"


def on_each(session: "SparkSession", count: int, work: Callable[[int], Batches], schema: Any) -> "DataFrame":
    """Calls a function with the numbers below a count, each in a task of its own.

    Args:
        session: of Spark.
        count: of the tasks, at least 1.
        work: the function.
        schema: of its batches, as Spark takes it.

    Returns:
        The rows of all batches.
    """

    def run(batches: Batches) -> Batches:
        for batch in batches:
            for number in batch.column(0).to_pylist():
                yield from work(number)

    return session.range(0, count, 1, count).mapInArrow(run, schema)


def write_on_each(
    session: "SparkSession", count: int, write: Callable[[int], Iterable[SpanFile]]
) -> Iterator[SpanFile]:
    """Writes files with a function of a number, as `on_each` calls it."""
    return _files(on_each(session, count, lambda number: iter([_as_batch(write(number))]), _WRITTEN))


def write_parts(rows: "DataFrame", write: Callable[[Batches], Iterable[SpanFile]]) -> Iterator[SpanFile]:
    """Writes files with a function of the batches of a partition, each in a task; an empty partition writes none."""

    def write_some(batches: Batches) -> Batches:
        filled = (batch for batch in batches if batch.num_rows)
        first = next(filled, None)
        if first is not None:
            yield _as_batch(write(itertools.chain([first], filled)))

    return _files(rows.mapInArrow(write_some, _WRITTEN))


def _as_batch(files: Iterable[SpanFile]) -> pa.RecordBatch:
    rows = [
        {"span": file.span, "name": file.name, "entry": json.dumps(file.entry), "counts": json.dumps(file.counts)}
        for file in files
    ]
    return pa.RecordBatch.from_pylist(
        rows, pa.schema({"span": pa.int32(), "name": pa.string(), "entry": pa.string(), "counts": pa.string()})
    )


def _files(written: "DataFrame") -> Iterator[SpanFile]:
    for span, name, entry, counts in written.collect():
        yield SpanFile(span, name, json.loads(entry), json.loads(counts))

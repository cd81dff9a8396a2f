"""Work of Spark's tasks: Python functions that make Arrow batches, or objects that the driver collects."""

import itertools
import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

Result = TypeVar("Result")
Batches = Iterator[pa.RecordBatch]


def rows_of_each(session: SparkSession, count: int, work: Callable[[int], Batches], schema: Any) -> DataFrame:
    """The rows of a function of the numbers below a count, each in a task of its own.

    Args:
        session: of Spark.
        count: of the tasks, at least 1.
        work: the function.
        schema: of its rows, as Spark takes it.
    """

    def run(batches: Batches) -> Batches:
        for batch in batches:
            for number in batch.column(0).to_pylist():
                yield from work(number)

    return session.range(0, count, 1, count).mapInArrow(run, schema)


def results_of_each(session: SparkSession, count: int, work: Callable[[int], Iterable[Result]]) -> list[Result]:
    """The results, in order, of a function of the numbers below a count; arguments are those of `rows_of_each`."""
    return _collected(rows_of_each(session, count, lambda number: _pickled(work(number)), "result BINARY"))


def results_of_parts(rows: DataFrame, work: Callable[[Batches], Iterable[Result]]) -> list[Result]:
    """The results of a function of each partition's batches; an empty partition has none."""

    def run(batches: Batches) -> Batches:
        filled = (batch for batch in batches if batch.num_rows)
        first = next(filled, None)
        if first is not None:
            yield from _pickled(work(itertools.chain([first], filled)))

    return _collected(rows.mapInArrow(run, "result BINARY"))


def _pickled(results: Iterable[Any]) -> Batches:
    return (pa.record_batch([pa.array([pickle.dumps(one)], pa.binary())], ["result"]) for one in results)


def _collected(pickled: DataFrame) -> list[Any]:
    return [pickle.loads(one) for (one,) in pickled.collect()]

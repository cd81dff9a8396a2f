"""What a preparation needs of the engine that holds its rows.

The steps are written once, in SQL that DuckDB and Spark both understand; an engine adds what SQL alone does not say.
Each engine also defines these functions:

- ``moment(time, nanos, rowid)`` orders interactions by time and, among those of one nanosecond, by their place in the
  log;
- ``entering(second, time, nanos, rowid)`` orders by another second first;
- ``bucket_of(raw, buckets)`` is a user's bucket;
- ``approx_percentile(value, share)`` is an aggregate.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from dist_imsr.addresses import Location
from dist_imsr.data.dataset import Dataset
from dist_imsr.data.manifest import Files
from dist_imsr.data.sources import SourceConfig
from dist_imsr.data.staging import Staged
from dist_imsr.data.writer import SpanFile, SpanWriter


class Engine(Protocol):
    """Holds the tables of one preparation and writes files from them."""

    def stage(self, config: SourceConfig, appended: Mapping[str, str] | None) -> Staged:
        """Makes the table ``events`` of a source, as `dist_imsr.data.staging.stage` describes it.

        Args:
            config: the source and its options.
            appended: as of `dist_imsr.data.sources.queries`.

        Raises:
            ValueError: naming key or file, if the source cannot be read.
        """
        ...

    def open_known(self, known: Dataset) -> None:
        """Makes the views of a data set.

        ``known_users`` and ``known_items`` have raw and id, without users who were forgotten; ``waiting`` has user,
        item and time.
        """
        ...

    def add_waiting(self, known: Dataset) -> None:
        """Adds the interactions of users who wait to ``events``, after those of the log; they are earlier."""
        ...

    def add_history(self, known: Dataset, users: str) -> None:
        """Makes the view ``history``: user, item and time of all kept interactions of some users, as ids.

        Args:
            known: the data set.
            users: a query for ids.
        """
        ...

    def kinds_of_ids(self, relation: str) -> dict[str, str]:
        """The names of DuckDB's types of raw ids, under ``users`` and ``items``: of ``events``, or ``known`` ones."""
        ...

    def run(self, sql: str, progress: Callable[[float], None] | None = None) -> list[tuple[Any, ...]]:
        """The rows of a query with a small result."""
        ...

    def create(self, name: str, sql: str, progress: Callable[[float], None] | None = None) -> None:
        """Makes a table of the result of a query."""
        ...

    def register(self, name: str, table: pa.Table) -> None:
        """Makes a view of a small table."""
        ...

    def mark(self, reason: str, rows: str, progress: Callable[[float], None] | None = None) -> int:
        """Sets the reason of rows of ``events``.

        Args:
            reason: the reason.
            rows: a query for the column ``rowid`` of rows without a reason.
            progress: called with the fraction that is done.

        Returns:
            The number of rows.
        """
        ...

    def numbered(self, rows: str, order: str, progress: Callable[[float], None] | None = None) -> str:
        """A query for rows and their ``number`` in an order, from 0.

        Args:
            rows: a query.
            order: the column that decides; no two rows have the same value.
            progress: called with the fraction that is done.
        """
        ...

    def with_spans(self, rows: str) -> str:
        """A query for rows and the ``span`` of the view ``new_spans`` in which their column ``second`` lies."""
        ...

    def nth_smallest(self, column: str, n: int) -> str:
        """SQL for the n-th smallest value in a group; NULL if there are fewer."""
        ...

    def write_buckets(
        self, writer: SpanWriter, rows: str, sizes: np.ndarray, progress: Callable[[float], None]
    ) -> Iterable[SpanFile]:
        """Writes the buckets of all new spans.

        Args:
            writer: writes a bucket.
            rows: a query for ``bucket, user, item, time, nanos, rowid`` and, if users had to wait, ``entered``.
            sizes: ``[buckets]``, the number of rows of each bucket.
            progress: called with the fraction that is done.
        """
        ...

    def write_ids(self, writer: SpanWriter, table: str, rows: str) -> Iterable[SpanFile]:
        """Writes the new raw ids of all new spans.

        Args:
            writer: writes those of a span.
            table: ``users`` or ``items``.
            rows: a query for the span, the id, and ``raw``.
        """
        ...

    def count_items(self, writer: SpanWriter) -> Iterable[SpanFile]:
        """Writes the numbers of interactions of items of all new spans."""
        ...

    def write_rows(self, folder: Location, name: str, rows: str, columns: str, order: str) -> Files:
        """Writes a Parquet file; returns its entry by its name.

        Args:
            folder: of the data set, or its address.
            name: the path in it.
            rows: a query.
            columns: those of the file.
            order: the columns that order the rows.
        """
        ...

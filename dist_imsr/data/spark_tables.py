"""Tables of Spark as Parquet files, in a folder that all executors reach: a lost executor takes none of them along."""

import contextlib
import itertools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from dist_imsr.addresses import Location
from dist_imsr.data.remote import RemoteFolder

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_HADOOP = {"s3": "s3a", "gcs": "gs"}  # Hadoop's schemes by those of pyarrow, where they differ


class SparkTables:
    """Tables of a session.

    Args:
        session: of Spark.
        folder: of the files.
    """

    def __init__(self, session: "SparkSession", folder: Location) -> None:
        self._session = session
        self._new_places = (folder / f"table-{number}" for number in itertools.count())
        self._places: dict[str, Location] = {}

    def stored(self, rows: "DataFrame") -> "DataFrame":
        """Writes rows; returns them as a table, which reads the files where it is needed."""
        return self._written(rows, next(self._new_places))

    def create(self, name: str, rows: "DataFrame") -> None:
        """Writes rows as the table of this name; the files of the one that it replaces are deleted."""
        place = next(self._new_places)
        self._written(rows, place).createOrReplaceTempView(name)
        if name in self._places:
            _delete(self._places[name])
        self._places[name] = place

    def _written(self, rows: "DataFrame", place: Location) -> "DataFrame":
        uri = uri_of(place)
        rows.write.parquet(uri)
        literally = re.sub(r"([][{}*?\\])", r"\\\1", uri)
        return self._session.read.schema(rows.schema).parquet(literally)


@contextlib.contextmanager
def spark_tables(session: "SparkSession", parent: Location) -> Iterator[SparkTables]:
    """The tables of a session, which are deleted at the end of the block.

    Args:
        session: of Spark.
        parent: of their folder.
    """
    folder = parent / f"spark-{uuid4().hex}"
    try:
        yield SparkTables(session, folder)
    finally:
        _delete(folder)


def uri_of(folder: Location) -> str:
    """How Spark names a folder."""
    if isinstance(folder, Path):
        return f"file://{folder.resolve()}"
    scheme, _, rest = folder.place.partition("://")
    return f"{_HADOOP.get(scheme, scheme)}://{rest}"


def _delete(folder: Location) -> None:
    """Deletes a folder of tables as far as it is there."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
        return
    with contextlib.suppress(OSError, ValueError):
        RemoteFolder(folder).delete_all()

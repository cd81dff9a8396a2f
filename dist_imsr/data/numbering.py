"""Numbers the users and items of a staged log: those that a data set knows keep their ids, others get new ones."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from dist_imsr.data.dataset import Dataset
from dist_imsr.data.sql import quoted_path
from dist_imsr.data.workspace import Database
from dist_imsr.data.writer import SEQUENCE_BITS

MOMENT = f"((time::UBIGINT << {SEQUENCE_BITS}) + events.rowid::UBIGINT)"
"""SQL for an interaction's time and, among those of one second, its place in the log."""

# The bucket must not depend on machine or version: it is the first 16 hexadecimal digits of MD5, modulo.
_BUCKET = "('0x' || left(md5(raw::VARCHAR), 16))::UBIGINT % {}"


class Counted(NamedTuple):
    """The interactions of a log and their users.

    Args:
        users: with at least one interaction that counts.
        first: unix second of the first interaction; 0 without any.
        last: unix second of the last one.
        kept: the users who do not wait.
        kept_first: unix second of their first interaction.
        kept_last: unix second of their last one.
        busiest: the largest number of interactions of a user.
    """

    users: int
    first: int
    last: int
    kept: int
    kept_first: int
    kept_last: int
    busiest: int


class Numbering:
    """The tables ``counts``, ``users`` and ``items`` of one preparation.

    ``users`` has raw, bucket, local, interactions, entered and new; ``items`` has raw, id, first_time and new.
    ``entered`` is the unix second from which on a new user counts, and 0 for known ones.

    Args:
        database: with the table ``events``.
        buckets: the number of buckets.
        min_interactions: what a new user needs.
        waits: whether a user counts from the interaction on that reaches ``min_interactions``, as in an append;
            otherwise from the first one on, as in the paper.
        known: the data set to which the log is added; None for a new one.
    """

    def __init__(
        self, database: Database, buckets: int, min_interactions: int, waits: bool, known: Dataset | None
    ) -> None:
        self._database, self._buckets, self._min_interactions, self._known = database, buckets, min_interactions, known
        self.waits = waits and min_interactions > 1
        before = np.zeros(buckets, np.int64) if known is None else np.asarray(known.entries[-1].users)
        self._users_before, self._items_before = before, 0 if known is None else known.entries[-1].items
        database.connection.register("users_before", pa.table({"bucket": np.arange(buckets), "users": before}))

    def number_users(self, progress: Callable[[float], None]) -> Counted:
        """Makes the tables ``counts`` and ``users``."""
        run, least = self._database.run, self._min_interactions
        entered = f"min(time, {least})[{least}]" if self.waits else "min(time)"
        run(
            f"CREATE TABLE counts AS SELECT user AS raw, count(*) AS interactions, min({MOMENT}) AS first, "
            f"max(time) AS last_time, {entered} AS entered FROM events WHERE reason IS NULL GROUP BY user",
            progress,
        )
        unknown = (
            f"SELECT *, {_BUCKET.format(self._buckets)} AS bucket FROM counts {self._unknown('users', 'counts.raw')}"
        )
        new = f"""
            SELECT raw, bucket, users + row_number() OVER (PARTITION BY bucket ORDER BY entered, first) - 1 AS local,
                interactions, entered, TRUE AS new, first, last_time
            FROM ({unknown}) JOIN users_before USING (bucket) WHERE interactions >= {least}
        """
        known = f"""
            SELECT raw, id % {self._buckets} AS bucket, id // {self._buckets} AS local, interactions, 0 AS entered,
                FALSE AS new, first, last_time
            FROM counts JOIN known_users USING (raw)
        """
        run(f"CREATE TABLE users AS {new}" + (f" UNION ALL {known}" if self._known is not None else ""))
        [(users, first, last, busiest)] = run(
            f"SELECT count(*), min(first) >> {SEQUENCE_BITS}, max(last_time), max(interactions) FROM counts"
        )
        [(kept, kept_first, kept_last)] = run(
            f"SELECT count(*), min(first) >> {SEQUENCE_BITS}, max(last_time) FROM users"
        )
        return Counted(users, first or 0, last or 0, kept, kept_first or 0, kept_last or 0, busiest or 0)

    def number_items(self, progress: Callable[[float], None]) -> None:
        """Makes the table ``items``; new ones are in the order of their first appearance, after the known ones."""
        first, time = MOMENT, "time"
        if self.waits:  # rows that waited appear when their user enters
            time = "greatest(time, entered)"
            first = f"({time}::UHUGEINT << 64) + {MOMENT}"
        seen = (
            f"SELECT item AS raw, min({first}) AS first, min({time}) AS first_time "
            "FROM events JOIN users ON events.user = users.raw WHERE reason IS NULL GROUP BY item"
        )
        before = self._items_before
        new = f"SELECT raw, {before} + row_number() OVER (ORDER BY first) - 1 AS id, first_time, TRUE AS new"
        if self._known is None:
            self._database.run(f"CREATE TABLE items AS {new} FROM ({seen})", progress)
            return
        self._database.run(f"CREATE TABLE seen_items AS {seen}", progress)
        known = "SELECT raw, id, first_time, FALSE AS new FROM seen_items JOIN known_items USING (raw)"
        unknown = self._unknown("items", "seen_items.raw")
        self._database.run(f"CREATE TABLE items AS {known} UNION ALL {new} FROM seen_items {unknown}")

    def _unknown(self, table: str, column: str) -> str:
        return "" if self._known is None else f"ANTI JOIN known_{table} AS known ON known.raw = {column}"

    def known_by_span(self, edges: np.ndarray) -> tuple[list[int], np.ndarray]:
        """The numbers of items and users that are known.

        Args:
            edges: ``[S + 1]``, of the new spans.

        Returns:
            Items known before the new spans and by the end of each, ``[S + 1]``; users in each bucket likewise,
            ``[S + 1, buckets]``.
        """
        spans = np.arange(len(edges) - 1)
        self._database.connection.register("new_spans", pa.table({"span": spans, "first_second": edges[:-1]}))
        items, users = np.zeros(len(edges), np.int64), np.zeros((len(edges), self._buckets), np.int64)
        items[0], users[0] = self._items_before, self._users_before
        for span, count in self._database.run(self._new_by_span("items", "first_time", int(edges[0]), "")):
            items[1 + span] = count
        for bucket, span, count in self._database.run(self._new_by_span("users", "entered", int(edges[0]), "bucket, ")):
            users[1 + span, bucket] = count
        return items.cumsum().tolist(), users.cumsum(0)

    def _new_by_span(self, table: str, time: str, first: int, keys: str) -> str:
        rows = f"SELECT {keys}greatest({time}, {first}) AS second FROM {table} WHERE new"
        return (
            f"SELECT {keys}span, count(*) FROM ({rows}) AS rows ASOF JOIN new_spans "
            "ON rows.second >= new_spans.first_second GROUP BY ALL"
        )


def open_known(database: Database, known: Dataset) -> None:
    """Makes the views ``known_users`` and ``known_items``: raw, id; without users who were forgotten."""
    for table in ("users", "items"):
        paths = [quoted_path(known.local(entry.ids_file(table))) for entry in known.entries]
        database.run(
            f"CREATE VIEW known_{table} AS SELECT raw, {table[:-1]} AS id FROM read_parquet([{', '.join(paths)}], "
            "hive_partitioning = false) WHERE raw IS NOT NULL"
        )


def require_same_ids(database: Database, known: Dataset, name: str) -> None:
    """Refuses a log whose ids have other types than those of the data set.

    Raises:
        ValueError: naming the column.
    """
    kinds = dict(row[:2] for row in database.run("DESCRIBE events"))
    for table in ("users", "items"):
        [(_, kind, *_)] = database.run(f"DESCRIBE SELECT raw FROM known_{table}")
        found = kinds[table[:-1]]
        if found != kind:
            raise ValueError(f"columns.{table[:-1]}: {name} has {found}, and {known.path} has {kind}: convert it")


def ids_query(table: str, buckets: int, first: int, kind: str) -> str:
    """A query for the new raw ids, in the order of spans and of ids inside a span.

    Args:
        table: ``users`` or ``items``.
        buckets: the number of buckets.
        first: the first second of the new spans.
        kind: SQL's type of the ids.
    """
    if table == "items":
        return f"SELECT id::{kind} AS item, raw FROM items WHERE new ORDER BY id"
    rows = f"SELECT (local * {buckets} + bucket)::BIGINT AS user, raw, greatest(entered, {first}) AS second "
    rows += "FROM users WHERE new"
    return f"SELECT user, raw FROM ({rows}) AS rows ASOF JOIN new_spans ON second >= first_second ORDER BY span, user"


def per_bucket(database: Database, buckets: int) -> np.ndarray:
    """The number of interactions of the users of each bucket, ``[buckets]`` int64."""
    sizes = np.zeros(buckets, np.int64)
    for bucket, interactions in database.run("SELECT bucket, sum(interactions)::BIGINT FROM users GROUP BY bucket"):
        sizes[bucket] = interactions
    return sizes


def rows_by_span(database: Database, edges: Sequence[int]) -> list[int]:
    """The number of the log's valid rows in each new span, by their own times; earlier ones are in the first."""
    counts = [0] * (len(edges) - 1)
    rows = f"SELECT greatest(time, {edges[0]}) AS second FROM events WHERE reason IS NULL"
    for span, count in database.run(
        f"SELECT span, count(*) FROM ({rows}) AS rows ASOF JOIN new_spans ON second >= first_second GROUP BY span"
    ):
        counts[span] = count
    return counts

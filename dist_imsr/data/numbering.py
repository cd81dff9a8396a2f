"""Numbers the users and items of a staged log: those that a data set knows keep their ids, others get new ones."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from dist_imsr.data.dataset import Dataset
from dist_imsr.data.engine import Engine

_MOMENT = "moment(time, nanos, events.rowid)"


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
        engine: with the table ``events``.
        buckets: the number of buckets.
        min_interactions: what a new user needs.
        waits: whether a user counts from the interaction on that reaches ``min_interactions``, as in an append;
            otherwise from the first one on, as in the paper.
        known: the data set to which the log is added; None for a new one.
    """

    def __init__(self, engine: Engine, buckets: int, min_interactions: int, waits: bool, known: Dataset | None) -> None:
        self._engine, self._buckets, self._min_interactions, self._known = engine, buckets, min_interactions, known
        self.waits = waits and min_interactions > 1
        before = np.zeros(buckets, np.int64) if known is None else np.asarray(known.entries[-1].users)
        self._users_before, self._items_before = before, 0 if known is None else known.entries[-1].items
        engine.register("users_before", pa.table({"bucket": np.arange(buckets), "users": before}))

    def number_users(self, progress: Callable[[float], None]) -> Counted:
        """Makes the tables ``counts`` and ``users``."""
        engine, least, buckets = self._engine, self._min_interactions, self._buckets
        entered = engine.nth_smallest("time", least) if self.waits else "min(time)"
        engine.create(
            "counts",
            f"SELECT user AS raw, count(*) AS interactions, min({_MOMENT}) AS first, min(time) AS first_time, "
            f"max(time) AS last_time, {entered} AS entered FROM events WHERE reason IS NULL GROUP BY user",
            progress,
        )
        unknown = f"SELECT *, bucket_of(raw, {buckets}) AS bucket FROM counts {self._unknown('users', 'counts.raw')}"
        new = f"""
            SELECT raw, bucket, users + row_number() OVER (PARTITION BY bucket ORDER BY entered, first) - 1 AS local,
                interactions, entered, TRUE AS new, first_time, last_time
            FROM ({unknown}) JOIN users_before USING (bucket) WHERE interactions >= {least}
        """
        known = f"""
            SELECT raw, id % {buckets} AS bucket, CAST((id - id % {buckets}) / {buckets} AS BIGINT) AS local,
                interactions, CAST(0 AS BIGINT) AS entered, FALSE AS new, first_time, last_time
            FROM counts JOIN known_users USING (raw)
        """
        engine.create("users", new + (f" UNION ALL {known}" if self._known is not None else ""))
        [counted] = engine.run("SELECT count(*), min(first_time), max(last_time), max(interactions) FROM counts")
        [kept] = engine.run("SELECT count(*), min(first_time), max(last_time) FROM users")
        users, first, last, busiest = (value or 0 for value in counted)
        kept_users, kept_first, kept_last = (value or 0 for value in kept)
        return Counted(users, first, last, kept_users, kept_first, kept_last, busiest)

    def number_items(self, progress: Callable[[float], None]) -> None:
        """Makes the table ``items``; new ones are in the order of their first appearance, after the known ones."""
        first, time = _MOMENT, "time"
        if self.waits:  # rows that waited appear when their user enters
            time = "greatest(time, entered)"
            first = f"entering({time}, time, nanos, events.rowid)"
        seen = (
            f"SELECT item AS raw, min({first}) AS first, min({time}) AS first_time "
            "FROM events JOIN users ON events.user = users.raw WHERE reason IS NULL GROUP BY item"
        )
        if self._known is not None:
            self._engine.create("seen_items", seen, progress)
            seen = f"SELECT * FROM seen_items {self._unknown('items', 'seen_items.raw')}"
        numbered = self._engine.numbered(seen, "first", progress)
        new = f"SELECT raw, {self._items_before} + number AS id, first_time, TRUE AS new FROM ({numbered})"
        known = "SELECT raw, id, first_time, FALSE AS new FROM seen_items JOIN known_items USING (raw)"
        self._engine.create("items", new + (f" UNION ALL {known}" if self._known is not None else ""))

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
        self._engine.register("new_spans", pa.table({"span": spans, "first_second": edges[:-1]}))
        items, users = np.zeros(len(edges), np.int64), np.zeros((len(edges), self._buckets), np.int64)
        items[0], users[0] = self._items_before, self._users_before
        for span, count in self._engine.run(self._new_by_span("items", "first_time", int(edges[0]), "")):
            items[1 + span] = count
        for bucket, span, count in self._engine.run(self._new_by_span("users", "entered", int(edges[0]), "bucket, ")):
            users[1 + span, bucket] = count
        return items.cumsum().tolist(), users.cumsum(0)

    def _new_by_span(self, table: str, time: str, first: int, keys: str) -> str:
        rows = f"SELECT {keys}greatest({time}, {first}) AS second FROM {table} WHERE new"
        return f"SELECT {keys}span, count(*) FROM ({self._engine.with_spans(rows)}) GROUP BY ALL"


def require_same_ids(engine: Engine, known: Dataset, name: str) -> None:
    """Refuses a log whose ids have other types than those of the data set.

    Raises:
        ValueError: naming the column.
    """
    kinds = engine.kinds_of_ids("known")
    for table, found in engine.kinds_of_ids("events").items():
        if found != kinds[table]:
            raise ValueError(
                f"columns.{table[:-1]}: {name} has {found}, and {known.path} has {kinds[table]}: convert it"
            )


def ids_query(engine: Engine, table: str, buckets: int, first: int, kind: str) -> str:
    """A query for the span, the id and ``raw`` of new users or items.

    Args:
        engine: with the tables ``users`` and ``items``.
        table: ``users`` or ``items``.
        buckets: the number of buckets.
        first: the first second of the new spans.
        kind: SQL's type of the items' ids.
    """
    if table == "items":
        rows = f"SELECT id::{kind} AS item, raw, greatest(first_time, {first}) AS second FROM items WHERE new"
    else:
        rows = f"SELECT (local * {buckets} + bucket)::BIGINT AS user, raw, greatest(entered, {first}) AS second "
        rows += "FROM users WHERE new"
    return f"SELECT span, {table[:-1]}, raw FROM ({engine.with_spans(rows)})"


def per_bucket(engine: Engine, buckets: int) -> np.ndarray:
    """The number of interactions of the users of each bucket, ``[buckets]`` int64."""
    sizes = np.zeros(buckets, np.int64)
    for bucket, interactions in engine.run("SELECT bucket, sum(interactions)::BIGINT FROM users GROUP BY bucket"):
        sizes[bucket] = interactions
    return sizes


def rows_by_span(engine: Engine, edges: Sequence[int]) -> list[int]:
    """The number of the log's valid rows in each new span, by their own times; earlier ones are in the first."""
    counts = [0] * (len(edges) - 1)
    rows = f"SELECT greatest(time, {edges[0]}) AS second FROM events WHERE reason IS NULL"
    for span, count in engine.run(f"SELECT span, count(*) FROM ({engine.with_spans(rows)}) GROUP BY span"):
        counts[span] = count
    return counts

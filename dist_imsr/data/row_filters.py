"""Leaves out rows that only all rows together can tell: repeats, and rare items with their users."""

from collections.abc import Callable

from dist_imsr.data.row_options import RowOptions
from dist_imsr.data.source_query import LEFT_OUT
from dist_imsr.data.workspace import Database, ProgressDisplay

_SAME = {"same_time": "user, item, time, nanos", "all": "user, item"}


def order_by_fraction(database: Database, display: ProgressDisplay) -> None:
    """Orders the table ``events`` by the fraction of the second, if any row has one, so that ``rowid`` breaks ties."""
    [(fractional,)] = database.run("SELECT coalesce(max(nanos), 0) > 0 FROM events")
    if fractional:
        with display.phase("fractions") as progress:
            database.run("CREATE TABLE ordered AS SELECT * FROM events ORDER BY nanos, rowid", progress)
            database.run("DROP TABLE events")
            database.run("ALTER TABLE ordered RENAME TO events")


def leave_out(options: RowOptions, min_interactions: int, database: Database, display: ProgressDisplay) -> None:
    """Sets the reason of rows of the table ``events`` that do not count.

    Args:
        options: which rows count.
        min_interactions: of a user.
        database: with the table, ordered as `order_by_fraction` does.
        display: shows the progress.
    """
    if options.drop_repeats != "none":
        with display.phase("repeats") as progress:
            _drop_repeats(_SAME[options.drop_repeats], database, progress)
    if options.min_users_per_item > 1:
        with display.phase("k-core"):
            _drop_rare(options.min_users_per_item, min_interactions, database)


def _drop_repeats(columns: str, database: Database, progress: Callable[[float], None]) -> None:
    # The first in time counts: rowid orders rows of the same second.
    numbered = f"row_number() OVER (PARTITION BY {columns} ORDER BY time, rowid)"
    later = f"SELECT place FROM (SELECT rowid AS place, {numbered} AS n FROM events WHERE reason IS NULL) WHERE n > 1"
    database.run(f"UPDATE events SET reason = '{LEFT_OUT}repeats' WHERE rowid IN ({later})", progress)


def _drop_rare(min_users: int, min_interactions: int, database: Database) -> None:
    conditions = (("item", "count(DISTINCT user)", min_users), ("user", "count(*)", min_interactions))
    changed = 1
    while changed:
        changed = 0
        for key, count, least in conditions:
            rare = f"SELECT {key} FROM events WHERE reason IS NULL GROUP BY {key} HAVING {count} < {least}"
            [(rows,)] = database.run(
                f"UPDATE events SET reason = '{LEFT_OUT}rare' WHERE reason IS NULL AND {key} IN ({rare})"
            )
            changed += rows

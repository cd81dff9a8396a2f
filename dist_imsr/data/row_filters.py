"""Leaves out rows that only all rows together can tell: repeats, and rare items with their users."""

from dist_imsr.data.engine import Engine
from dist_imsr.data.row_options import RowOptions
from dist_imsr.data.source_query import LEFT_OUT
from dist_imsr.data.workspace import ProgressDisplay

_SAME = {"same_time": "user, item, time, nanos", "all": "user, item"}


def leave_out(options: RowOptions, min_interactions: int, engine: Engine, display: ProgressDisplay) -> None:
    """Sets the reason of rows of the table ``events`` that do not count.

    Args:
        options: which rows count.
        min_interactions: of a user.
        engine: with the table.
        display: shows the progress.
    """
    if options.drop_repeats != "none":
        with display.phase("repeats") as progress:
            # The first in time counts: rowid orders rows of the same nanosecond.
            columns = _SAME[options.drop_repeats]
            number = f"row_number() OVER (PARTITION BY {columns} ORDER BY time, nanos, rowid)"
            numbered = f"SELECT rowid AS place, {number} AS n FROM events WHERE reason IS NULL"
            engine.mark(f"{LEFT_OUT}repeats", f"SELECT place AS rowid FROM ({numbered}) WHERE n > 1", progress)
    if options.min_users_per_item > 1:
        with display.phase("k-core"):
            _drop_rare(options.min_users_per_item, min_interactions, engine)


def _drop_rare(min_users: int, min_interactions: int, engine: Engine) -> None:
    conditions = (("item", "count(DISTINCT user)", min_users), ("user", "count(*)", min_interactions))
    changed = 1
    while changed:
        changed = 0
        for key, count, least in conditions:
            rare = f"SELECT {key} FROM events WHERE reason IS NULL GROUP BY {key} HAVING {count} < {least}"
            rows = f"SELECT rowid FROM events WHERE reason IS NULL AND {key} IN ({rare})"
            changed += engine.mark(f"{LEFT_OUT}rare", rows)

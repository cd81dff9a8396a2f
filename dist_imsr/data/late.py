"""Late rows of a log that is appended, which enter its first span, unless the data hold them already."""

from collections import Counter

import numpy as np
import pyarrow as pa

from dist_imsr.data.dataset import Dataset
from dist_imsr.data.engine import Engine
from dist_imsr.data.source_query import LATE

_KNOWN = "already in the data"


def reject_known_rows(known: Dataset, engine: Engine) -> Counter[str]:
    """Sets the reason of late rows of the table ``events`` that the data set holds, or that it cannot tell.

    The cost follows the late rows, and what their users did in the spans that are kept.

    Args:
        known: the data set.
        engine: with the table ``events`` and the views ``known_users``, ``known_items`` and ``waiting``.

    Returns:
        The number of rows that are now rejected, by reason.
    """
    end = known.entries[-1].end_second
    late = f"reason IS NULL AND time < {end}"
    [(count,)] = engine.run(f"SELECT count(*) FROM events WHERE {late}")
    if not count:
        return Counter()
    rejected = Counter[str]()
    if known.first_kept:
        first = known.entries[known.first_kept].first_second if known.first_kept < known.spans else end
        reason = f"{LATE}, before retired rows"
        rejected[reason] = engine.mark(reason, f"SELECT rowid FROM events WHERE {late} AND time < {first}")
    if known.waiting_files:
        rejected[_KNOWN] += _reject(late, "waiting", engine)
    users = f"SELECT DISTINCT id FROM events JOIN known_users ON events.user = known_users.raw WHERE {late}"
    engine.add_history(known, users)
    numbered = (
        "(SELECT u.raw AS user, i.raw AS item, time FROM history JOIN known_users AS u ON history.user = u.id "
        "JOIN known_items AS i ON history.item = i.id)"
    )
    rejected[_KNOWN] += _reject(late, numbered, engine)
    return +rejected


def _reject(late: str, relation: str, engine: Engine) -> int:
    rows = (
        f"SELECT events.rowid FROM events SEMI JOIN {relation} AS there ON events.user = there.user "
        f"AND events.item = there.item AND events.time = there.time WHERE {late}"
    )
    return engine.mark(_KNOWN, rows)


def history_of(known: Dataset, bucket: int, users: np.ndarray) -> pa.Table:
    """All kept interactions of some users of a bucket: user, item, time.

    Args:
        known: the data set.
        bucket: of the users.
        users: ``[n]`` their ids.
    """
    parts = []
    for span in range(known.first_kept, known.spans):
        sequences = known.sequences(span, bucket)
        owner, places = sequences.of(users)
        columns = users[owner], sequences.items[places].astype(np.int64), sequences.times[places]
        parts.append(pa.table(dict(zip(("user", "item", "time"), columns, strict=True))))
    empty = pa.table({name: pa.array([], pa.int64()) for name in ("user", "item", "time")})
    return pa.concat_tables([empty, *parts])

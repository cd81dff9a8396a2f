"""What a prepared log cannot teach, or what in it looks like a mistake: warnings with numbers and a remedy."""

from collections.abc import Sequence
from dataclasses import dataclass

from dist_imsr.data.cutting import date_of
from dist_imsr.data.dataset import Dataset
from dist_imsr.data.engine import Engine
from dist_imsr.data.manifest import SpanEntry
from dist_imsr.data.times import EARLIEST_LIKELY

_LARGE_SHARE = 0.2  # of all rows, for one user
_FAR = 10  # times between the quartiles, beyond which a time is an outlier


@dataclass(frozen=True)
class _Quantiles:
    """Unix seconds of interactions: the first, the quartiles, and the last."""

    first: int
    lower: int
    median: int
    upper: int
    last: int


def warnings_of(entries: Sequence[SpanEntry], known: Dataset | None, engine: Engine) -> list[str]:
    """Warnings about a log that was cut into spans.

    Args:
        entries: its spans.
        known: the data set to which they are added; None for a new one.
        engine: with the tables ``events`` and ``counts``.

    Returns:
        One line each.
    """
    found = _large_users(engine)
    return found + (_unlearnable_later(entries) if known else _unlikely_times(entries, engine) + _unlearnable(entries))


def _large_users(engine: Engine) -> list[str]:
    largest = engine.run("SELECT raw::STRING, interactions FROM counts ORDER BY interactions DESC, first LIMIT 5")
    [(total,)] = engine.run("SELECT sum(interactions)::BIGINT FROM counts")
    large = [(user, count) for user, count in largest if count > _LARGE_SHARE * total]
    if not large:
        return []
    named = ", ".join(f"{user!r} {count / total:.0%}" for user, count in large)
    return [
        f"users with more than a fifth of all {total:,} rows: {named}. If such an id means that the user is not known, "
        "pass it in --null_values (and raise --max_bad_fraction, as these rows are then rejected)"
    ]


def _unlikely_times(entries: Sequence[SpanEntry], engine: Engine) -> list[str]:
    interactions = [entry.interactions for entry in entries]
    if entries[0].first_second >= EARLIEST_LIKELY and 0 not in interactions:
        return []
    [values] = engine.run(
        "SELECT min(time), approx_percentile(time, 0.25), approx_percentile(time, 0.5), approx_percentile(time, 0.75), "
        "max(time) FROM events WHERE reason IS NULL"
    )
    times = _Quantiles(*map(int, values))
    found = []
    if times.median < EARLIEST_LIKELY:
        found.append(
            f"half of the times are before {date_of(times.median)}: if they are not in the unit that they were read "
            "in, state --time_unit"
        )
    if 0 not in interactions:
        return found
    reach = _FAR * max(times.upper - times.lower, 1)
    empty = sum(count == 0 for count in interactions)
    line = f"{empty} of {len(entries)} spans hold no interactions, as one is at {{}}, while half of all are between "
    line += f"{date_of(times.lower)} and {date_of(times.upper)}: cut it off with --{{}} {{}}"
    for key, outlier, bound, condition in (
        ("from", times.first, times.lower - reach, "time >= {}"),
        ("until", times.last, times.upper + reach, "time <= {}"),
    ):
        if not (outlier < bound if key == "from" else outlier > bound):
            continue
        within = "min(time)" if key == "from" else "max(time) + 1"
        [(cut,)] = engine.run(f"SELECT {within} FROM events WHERE reason IS NULL AND {condition.format(bound)}")
        found.append(line.format(date_of(outlier), key, date_of(cut)))
    return found or [f"{empty} of {len(entries)} spans hold no interactions: use fewer --spans"]


def _unlearnable(entries: Sequence[SpanEntry]) -> list[str]:
    found = []
    filled = sum(entry.interactions > 0 for entry in entries)
    if filled == 1:
        found.append("all interactions are in one span: nothing can be trained on one span and tested on the next")
    bare = [span for span, entry in enumerate(entries) if entry.interactions and not entry.trainable_users]
    if bare:
        found.append(
            f"spans without a user to train on: {_numbers(bare)} (a user needs at least 2 interactions in a span that "
            "are not held out): use fewer --spans, or more data"
        )
    if not any(entry.tested_users for entry in entries[1:]):
        found.append(
            "no user can be tested: none has 3 interactions in a span after an earlier span: use fewer --spans, or "
            "more data"
        )
    return found


def _unlearnable_later(entries: Sequence[SpanEntry]) -> list[str]:
    lacks = {
        "no interactions": [entry.name for entry in entries if not entry.interactions],
        "no user to train on": [entry.name for entry in entries if entry.interactions and not entry.trainable_users],
        "no known user to test on": [entry.name for entry in entries if entry.interactions and not entry.tested_users],
    }
    return [f"spans with {lack}: {_numbers([*map(int, names)])}" for lack, names in lacks.items() if names]


def _numbers(spans: Sequence[int]) -> str:
    shown = ", ".join(map(str, spans[:10]))
    return shown + (f" and {len(spans) - 10} more" if len(spans) > 10 else "")

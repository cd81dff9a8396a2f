"""Options that say which rows of a log count and how it is cut; sections of the configuration share them."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal
from zoneinfo import ZoneInfo

from dist_imsr.checks import require
from dist_imsr.data.cutting import second_of
from dist_imsr.data.times import UNITS

_DIRECTIVE = "%"  # a format of strptime holds one


@dataclass(kw_only=True)
class SpanOptions:
    """The users that count, and the cut into spans of time.

    Args:
        min_interactions: users with fewer interactions wait until later logs bring enough.
        alpha: the part of the whole time that is the pre-training span.
        spans: T, the number of equal spans of the rest.
    """

    own_heading: ClassVar[bool] = True

    min_interactions: int = 30
    alpha: float = 0.5
    spans: int = 6

    def __post_init__(self) -> None:
        require(self.min_interactions >= 1, "min_interactions", self.min_interactions, "at least 1")
        require(0 < self.alpha < 1, "alpha", self.alpha, "more than 0 and less than 1")
        require(1 <= self.spans < 2**15, "spans", self.spans, "at least 1 and less than 32768")


@dataclass(kw_only=True)
class RowOptions:
    """The rows that count as interactions.

    Args:
        behaviours: those that count; by default pv in taobao, click in tmall, and all in others.
        min_rating: the least rating that counts.
        from_: the first time that counts: a date, a date and time, or unix seconds. In YAML the key is ``from_``.
        until: the first time that no longer counts, in the same forms.
        null_values: texts of ids that mean that there is none, such as NA or NULL (in quotes in YAML); empty ones
            always do.
        drop_repeats: leave out what repeats an earlier row: none; same_time, the same user, item and time; all, the
            same user and item.
        min_users_per_item: items of fewer users are dropped, and then users of too few interactions, until all have
            enough (k-core).
        time_unit: of times: s, ms, us, ns, iso (dates, with or without a time) or a format of strptime such as
            %Y%m%d; guessed and reported by default.
        time_zone: of dates that name no zone, in the log and in keys, and of the calendar of ``span_every``.
        max_bad_fraction: the maximal fraction of rejected rows among all rows.
    """

    own_heading: ClassVar[bool] = True

    behaviours: list[str] | None = None
    min_rating: float | None = None
    from_: str | int | None = None
    until: str | int | None = None
    null_values: list[str] = field(default_factory=list)
    drop_repeats: Literal["none", "same_time", "all"] = "none"
    min_users_per_item: int = 1
    time_unit: str | None = None
    time_zone: str = "UTC"
    max_bad_fraction: float = 0.01

    def __post_init__(self) -> None:
        require(self.behaviours != [], "behaviours", self.behaviours, "at least one")
        require(self.min_users_per_item >= 1, "min_users_per_item", self.min_users_per_item, "at least 1")
        require(0 <= self.max_bad_fraction < 1, "max_bad_fraction", self.max_bad_fraction, "0 or more, less than 1")
        unit = self.time_unit
        named = unit is None or unit in (*UNITS, "iso") or _DIRECTIVE in unit
        require(named, "time_unit", unit, f"{', '.join(UNITS)}, iso, or a format such as %Y%m%d")
        require(_is_zone(self.time_zone), "time_zone", self.time_zone, "a name such as Asia/Shanghai")
        first, end = self.period
        require(first is None or end is None or first < end, "until", self.until, f"a time after from, {self.from_}")

    @property
    def late_before(self) -> int | None:
        """Rows before this unix second are rejected; None for no limit."""
        return None

    @property
    def period(self) -> tuple[int | None, int | None]:
        """The first unix second that counts, and the first that no longer does; None for no limit."""
        first, end = self.from_, self.until
        return (
            None if first is None else second_of("from", first, self.time_zone),
            None if end is None else second_of("until", end, self.time_zone),
        )


def _is_zone(name: str) -> bool:
    try:
        return ZoneInfo(name).key[0].isupper()  # DuckDB does not know localtime and posix/...
    except (KeyError, OSError, ValueError):  # unknown, or no name at all
        return False

"""The formats of public logs, each a short declaration: which column is what, and how it is written."""

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

TAOBAO_WINDOW = (1511539200, 1512316799)  # 2017-11-25 00:00:00 .. 2017-12-03 23:59:59 in China, unix seconds
_AMAZON_IDS = (r"(A|#oc-).*", r"(B[0-9A-Z]{9}|[0-9]{9}[0-9X])")
_FEW = 0.1  # the share of lines that may be exceptions


@dataclass(frozen=True, kw_only=True)
class RawFormat:
    """A format of a raw log.

    Args:
        name: if a source has several formats, for messages.
        user: the name of the column, or JSON key, of the user's raw id.
        item: of the item's raw id.
        time: of the time.
        rating: of the rating, if there is one.
        behaviour: of the behaviour, if there is one.
        title: of the item's title, if it is wanted.
        order: the names of all columns, in order, if files have no header; a header may name the columns as well.
        json: whether each line is a JSON object.
        time_unit: as ``time_unit`` in `SourceConfig`, if it is known.
        time_text: SQL that completes the text ``{0}`` of a time, if it is incomplete.
        behaviours: the text in the file for each behaviour.
        whole_ids: whether ids are whole numbers of 64 bits.
        window: the first and last second of the public data; rows outside of it are rejected.
        ids: regular expressions of users' and of items' ids, to tell an order of columns; empty for none.
        certain: whether the order is taken only if users' ids are of their kind.
        configured: whether the user states the names of columns.
        in_folders: what is not a column, but the value of a folder named KEY=VALUE.
    """

    name: str = ""
    user: str
    item: str
    time: str
    rating: str | None = None
    behaviour: str | None = None
    title: str | None = None
    order: tuple[str, ...] = ()
    json: bool = False
    time_unit: str | None = None
    time_text: str = "{0}"
    behaviours: tuple[tuple[str, str], ...] = ()
    whole_ids: bool = False
    window: tuple[int, int] | None = None
    ids: tuple[str, str] | tuple[()] = ()
    certain: bool = False
    configured: bool = False
    in_folders: tuple[str, ...] = ()

    @property
    def columns(self) -> dict[str, str]:
        """The names of the columns that are read, by what they are."""
        named = {key: getattr(self, key) for key in ("user", "item", "time", "rating", "behaviour", "title")}
        return {key: name for key, name in named.items() if name is not None and key not in self.in_folders}

    def with_folders(self, folders: Container[str]) -> "RawFormat":
        """The same format, if the values of these columns are those of folders.

        Args:
            folders: names of columns.
        """
        return replace(self, in_folders=tuple(key for key, name in self.columns.items() if name in folders))

    def values_of(self, folders: Mapping[str, str]) -> dict[str, str]:
        """The values of folders, by what they are.

        Args:
            folders: the values by the names of columns.
        """
        return {key: folders[getattr(self, key)] for key in self.in_folders}

    @property
    def positional(self) -> bool:
        """Whether the columns are named by their positions, from 0."""
        return all(name.isdecimal() for name in self.columns.values())

    @property
    def expected(self) -> str:
        """The columns in words."""
        names = self.order or tuple(self.columns.values())
        kind = "JSON objects with " if self.json else "" if self.order else "a header with "
        return kind + ",".join(names)

    def places_in(self, header: Sequence[str]) -> dict[str, int] | None:
        """The places of the columns in a header; None if it lacks one or has one twice."""
        if any(header.count(name) != 1 for name in self.columns.values()):
            return None
        return {key: header.index(name) for key, name in self.columns.items()}

    def places_of(self, width: int) -> dict[str, int] | None:
        """The places of the columns in a file of so many columns without a header; None if it cannot be one."""
        if self.positional:
            places = {key: int(name) for key, name in self.columns.items()}
            return places if max(places.values()) < width else None
        if not self.order or len(self.order) != width:
            return None
        return {key: self.order.index(name) for key, name in self.columns.items()}

    def fits(self, users: Sequence[str], items: Sequence[str]) -> bool:
        """Whether columns of users and of items are in this order, by ``ids``."""
        if not self.ids or not users:
            return True
        user_like, item_like = self.ids
        swapped = max(_share(user_like, items), _share(item_like, users))
        return swapped <= _FEW and (not self.certain or _share(user_like, users) >= 1 - _FEW)

    def completed_time(self, text: str) -> str:
        """An incomplete time as if it were complete, to judge it."""
        return text if self.time_text == "{0}" else "20000101+0000"


def _share(pattern: str, texts: Sequence[str]) -> float:
    return sum(bool(re.fullmatch(pattern, text)) for text in texts) / len(texts)


_MOVIELENS = RawFormat(
    user="userId",
    item="movieId",
    time="timestamp",
    rating="rating",
    order=("userId", "movieId", "rating", "timestamp"),
    time_unit="s",
)
_AMAZON = RawFormat(
    name="2014",
    user="user",
    item="item",
    time="timestamp",
    rating="rating",
    order=("user", "item", "rating", "timestamp"),
    time_unit="s",
    ids=_AMAZON_IDS,
)

RAW_FORMATS: dict[str, tuple[RawFormat, ...]] = {
    "taobao": (
        RawFormat(
            user="user_id",
            item="item_id",
            time="timestamp",
            behaviour="behavior",
            order=("user_id", "item_id", "category_id", "behavior", "timestamp"),
            behaviours=tuple((name, name) for name in ("pv", "buy", "cart", "fav")),
            time_unit="s",
            whole_ids=True,
            window=TAOBAO_WINDOW,
        ),
    ),
    "amazon": (
        _AMAZON,
        replace(_AMAZON, name="2018", order=("item", "user", "rating", "timestamp"), certain=True),
        RawFormat(name="2023", user="user_id", item="parent_asin", time="timestamp", rating="rating", time_unit="ms"),
        RawFormat(
            name="2014 or 2018",
            user="reviewerID",
            item="asin",
            time="unixReviewTime",
            rating="overall",
            json=True,
            time_unit="s",
        ),
        RawFormat(
            name="2023",
            user="user_id",
            item="parent_asin",
            time="timestamp",
            rating="rating",
            json=True,
            time_unit="ms",
        ),
    ),
    "movielens": (_MOVIELENS,),
    "recbole": (
        RawFormat(
            name="with ratings",
            user="user_id:token",
            item="item_id:token",
            time="timestamp:float",
            rating="rating:float",
        ),
        RawFormat(user="user_id:token", item="item_id:token", time="timestamp:float"),
    ),
    "tmall": (
        RawFormat(
            user="user_id",
            item="item_id",
            time="time_stamp",
            behaviour="action_type",
            behaviours=(("click", "0"), ("cart", "1"), ("buy", "2"), ("fav", "3")),
            # Month and day in China, of 2014, without a leading zero.
            time_unit="%Y%m%d%z",
            time_text="CASE WHEN length({0}) BETWEEN 3 AND 4 THEN '2014' || lpad({0}, 4, '0') || '+0800' END",
        ),
    ),
    "yelp": (RawFormat(user="user_id", item="business_id", time="date", rating="stars", json=True, time_unit="iso"),),
    "gowalla": (
        RawFormat(
            user="user",
            item="location",
            time="time",
            order=("user", "time", "latitude", "longitude", "location"),
            time_unit="iso",
        ),
    ),
    "complete-journey": (RawFormat(user="household_id", item="product_id", time="transaction_timestamp"),),
}

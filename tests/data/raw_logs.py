"""Small undamaged logs in many formats, which the mutations start from."""

import bz2
import gzip
import io
import lzma
import random
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction

import pyarrow as pa
import pyarrow.parquet as pq

from tests.data.raw_reading import BACKSLASH, BLANKS, DOUBLED, WINDOW, Format

START = 1_600_000_000
USERS = ("u1", "u2", "u1 ", " u2", "007", "7", "é", "🙂", "NULL", "nan")
ITEMS = ("i0", "i1", "i2", "x y", "00", "0", "ß", "I1", "-1", "1e5")
PLAIN = ("u1", "u2", "007", "7", "NULL", "nan")


@dataclass
class Log:
    """A log and how to read it.

    Args:
        form: for the independent reading.
        options: of the command line.
        cells: the lines of a text as their fields, quoted as they stand in the file; the header is the first.
        table: of Parquet.
        delimiter: of a text.
        lines: each with its end; cells that are joined.
        compress: of the bytes of a text.
        parquet: options of the writer.
        data: the bytes of the file.
        undamaged: the bytes before the compressed or Parquet bytes were changed.
    """

    form: Format
    options: list[str] = field(default_factory=list)
    cells: list[list[str]] = field(default_factory=list)
    table: pa.Table | None = None
    delimiter: str = ","
    line_end: str = "\n"
    encoding: str = "utf-8"
    compress: Callable[[bytes], bytes] | None = None
    parquet: dict[str, object] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    data: bytes = b""
    undamaged: bytes = b""

    @property
    def first(self) -> int:
        """The place of the first row: after the header."""
        return int(self.form.header or (self.form.source == "csv" and not self.form.columns[0].isdecimal()))

    def join(self) -> None:
        """The lines of the cells."""
        self.lines = [self.delimiter.join(fields) + self.line_end for fields in self.cells]

    def render(self) -> None:
        """The bytes of the lines or of the table, not yet compressed."""
        if self.table is not None:
            file = pa.BufferOutputStream()
            pq.write_table(self.table, file, **self.parquet)
            self.data = file.getvalue().to_pybytes()
        else:
            mark = "\ufeff" if self.encoding.startswith("utf-16") else ""
            self.data = (mark + "".join(self.lines)).encode(self.encoding, "replace")


def _rows(draw: random.Random, users: tuple[str, ...] = USERS, items: tuple[str, ...] = ITEMS) -> list[tuple]:
    """User, item and seconds; about one row in four is tied with another, one in four comes late."""
    now, rows = START + draw.randrange(10**7), []
    for _ in range(draw.randint(20, 60)):
        now += draw.choice((0, 1, 60, 3600, 50_000))
        late = draw.choice((0, 0, 0, 7200))
        rows.append((draw.choice(users), draw.choice(items), now - late))
    return rows


def named(draw: random.Random) -> Log:
    rows = [[user, item, "5.0", str(when)] for user, item, when in _rows(draw)]
    return Log(Format("csv"), cells=[["user", "item", "rating", "time"], *rows])


def other_names(draw: random.Random) -> Log:
    rows = [[str(when), user, item] for user, item, when in _rows(draw)]
    options = ["--columns.user", "who", "--columns.item", "what", "--columns.time", "when"]
    return Log(Format("csv", ("who", "what", "when")), options, [["when", "who", "what"], *rows], line_end="\r\n")


def _positions(*places: int) -> tuple[tuple[str, str, str], list[str]]:
    user, item, time = map(str, places)
    return (user, item, time), ["--columns.user", user, "--columns.item", item, "--columns.time", time]


def by_position(draw: random.Random) -> Log:
    columns, options = _positions(0, 1, 2)
    return Log(Format("csv", columns), options, [[user, item, str(when)] for user, item, when in _rows(draw)])


def numbers_and_lists(draw: random.Random) -> Log:
    columns, options = _positions(0, 1, 2)
    rows = [(str(number % 7), str(number % 11), when) for number, (_, _, when) in enumerate(_rows(draw))]
    cells = [[user, item, str(when), f"11|5|{number}|7|8"] for number, (user, item, when) in enumerate(rows)]
    return Log(Format("csv", columns), options, cells)


def header_by_position(draw: random.Random) -> Log:
    columns, options = _positions(2, 1, 0)
    rows = [[str(when), item, user] for user, item, when in _rows(draw)]
    return Log(Format("csv", columns, (";",), header=True), options, [["t", "i", "u"], *rows], delimiter=";")


def delimited(delimiter: str, text: str) -> Callable[[random.Random], Log]:
    def log(draw: random.Random) -> Log:
        columns, options = _positions(0, 1, 3)
        users, items = (PLAIN, ITEMS[:3]) if delimiter == BLANKS else (USERS, ITEMS)
        rows = [[user, item, "3.5", str(when)] for user, item, when in _rows(draw, users, items)]
        return Log(Format("csv", columns, (delimiter,)), options, rows, delimiter=text)

    return log


def tabs(draw: random.Random) -> Log:
    log = named(draw)
    return replace(
        log, form=replace(log.form, delimiters=("\t",)), delimiter="\t", line_end=draw.choice(("\n", "\r\n"))
    )


def quoted(escape: str) -> Callable[[random.Random], Log]:
    inside = '""' if escape == DOUBLED else '\\"'
    items = ("a,b", f"c{inside}d", f"{inside}e{inside}", "f;g", "h|i|j|k|l")

    def log(draw: random.Random) -> Log:
        rows = [[f'"{user}"', f'"{item}"', str(when)] for user, item, when in _rows(draw, USERS, items)]
        rows[0][1] = f'"c{inside}d"'  # so that the escape is never in doubt
        return Log(Format("csv", escapes=(escape,)), cells=[["user", "item", "time"], *rows])

    return log


def dates(draw: random.Random) -> Log:
    form = draw.choice(("%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S+08:00", "%Y-%m-%d"))
    zone = timezone(timedelta(hours=8)) if "+" in form else UTC
    parts = draw.choice(("", ".5")) if form.endswith("%S") else ""
    rows = [[u, i, datetime.fromtimestamp(when, zone).strftime(form) + parts] for u, i, when in _rows(draw)]
    return Log(Format("csv", units=("iso",)), cells=[["user", "item", "time"], *rows])


def days(draw: random.Random) -> Log:
    rows = [[u, i, f"{datetime.fromtimestamp(START + (w - START) * 20, UTC):%Y%m%d}"] for u, i, w in _rows(draw)]
    return Log(Format("csv", units=("date",)), cells=[["user", "item", "time"], *rows])


def fractions(draw: random.Random) -> Log:
    rows = [
        [user, item, f"{when}.{draw.choice(('2', '25', '9', '999999', '000001'))}"] for user, item, when in _rows(draw)
    ]
    return Log(Format("csv"), cells=[["user", "item", "time"], *rows])


def fine_units(draw: random.Random) -> Log:
    unit = draw.choice(("ms", "us", "ns"))
    digits = {"ms": 3, "us": 6, "ns": 9}[unit]
    rows = [[user, item, f"{when}{draw.randrange(10**digits):0{digits}}"] for user, item, when in _rows(draw)]
    return Log(Format("csv", units=(unit,)), cells=[["user", "item", "time"], *rows])


def taobao(draw: random.Random) -> Log:
    rows, now = [], WINDOW[0] + 1000
    for _ in range(draw.randint(20, 60)):
        now += draw.choice((0, 1, 60, 5000))
        behaviour = draw.choice(("pv", "pv", "pv", "buy", "cart", "fav"))
        rows.append([draw.choice(("1", "22", "100")), str(draw.randrange(9)), "7", behaviour, str(now)])
    return Log(Format("taobao"), cells=rows)


def _zip(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("log.csv", (2020, 1, 1, 0, 0, 0)), data)
    return file.getvalue()


def _zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def compressed(draw: random.Random) -> Log:
    log = draw.choice((named, by_position, taobao))(draw)
    return replace(log, compress=draw.choice((_gzip, _gzip, bz2.compress, lzma.compress, _zstd, _zip)))


def utf16(draw: random.Random) -> Log:
    return replace(draw.choice((named, tabs, by_position))(draw), encoding=draw.choice(("utf-16-le", "utf-16-be")))


def marked(draw: random.Random) -> Log:
    return replace(draw.choice((named, by_position))(draw), encoding="utf-8-sig")


def latin(draw: random.Random) -> Log:
    users = ("é", "ü", "e", "u1")
    rows = [[user, item, str(when)] for user, item, when in _rows(draw, users)]
    cells = [["user", "item", "time"], *rows]
    return Log(Format("csv", encoding="latin-1"), ["--encoding", "latin-1"], cells, encoding="latin-1")


def nulls(draw: random.Random) -> Log:
    rows = [[user, item, str(when)] for user, item, when in _rows(draw)]
    rows = [[user if user != "NULL" else "u1", item, when] for user, item, when in rows]
    rows[5][0], rows[9][1] = "NA", "NULL"
    form = Format("csv", nulls=("NA", "NULL"), max_bad=Fraction(3, 10))
    return Log(form, ["--null_values", "[NA,NULL]"], [["user", "item", "time"], *rows])


def parquet(draw: random.Random) -> Log:
    rows = _rows(draw)
    users, items, seconds = map(list, zip(*rows, strict=True))
    if draw.random() < 0.5:
        users, items = [USERS.index(user) for user in users], [ITEMS.index(item) * 10**9 for item in items]
    unit = draw.choice(("s", "ms", "us", "ns"))
    digits = {"s": 0, "ms": 3, "us": 6, "ns": 9}[unit]
    times = pa.array([second * 10**digits + draw.randrange(10**digits) for second in seconds], pa.int64())
    if unit == "s" and draw.random() < 0.5:
        times = pa.array([second + draw.choice((0, 0.25, 0.5)) for second in seconds])
    elif draw.random() < 0.6:
        times = times.cast(pa.timestamp(unit, draw.choice((None, "UTC", "Asia/Shanghai"))))
    table = pa.table({"user": users, "rating": [5.0] * len(rows), "item": items, "time": times})
    options: dict[str, object] = {
        "compression": draw.choice(("none", "snappy", "zstd", "gzip")),
        "use_dictionary": draw.random() < 0.5,
        "store_schema": draw.random() < 0.3,  # without it, damage meets what every reader reads
        "row_group_size": draw.choice((7, 1000)),
    }
    return Log(Format("parquet", units=(unit,)), table=table, parquet=options)


LOGS: dict[str, Callable[[random.Random], Log]] = {
    "named": named,
    "other names": other_names,
    "by position": by_position,
    "numbers and lists": numbers_and_lists,
    "header by position": header_by_position,
    "colons": delimited("::", "::"),
    "bars": delimited("|", "|"),
    "control character": delimited("\x01", "\x01"),
    "blanks": delimited(BLANKS, "   "),
    "tabs": tabs,
    "quoted, doubled": quoted(DOUBLED),
    "quoted, backslash": quoted(BACKSLASH),
    "dates": dates,
    "days": days,
    "fractions": fractions,
    "fine units": fine_units,
    "taobao": taobao,
    "compressed": compressed,
    "utf-16": utf16,
    "byte order mark": marked,
    "latin-1": latin,
    "nulls": nulls,
    "parquet": parquet,
}

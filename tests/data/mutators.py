"""What may happen to a log: one small function a mutation, by the level at which it works.

A mutation that leaves open how the result is to be read widens the format: other delimiters where all were replaced,
other units where the column of times is another one.
"""

import random
from collections.abc import Callable
from dataclasses import replace

from tests.data.raw_logs import Log
from tests.data.raw_reading import BLANKS, DELIMITERS

Mutation = Callable[[random.Random, Log], None]

ALL_UNITS = ("s", "ms", "us", "ns", "date", "iso")
ODD = (
    *(
        "NA",
        "",
        " ",
        "null",
        "nan",
        "inf",
        "-1",
        "-5.5",
        "0",
        "5",
        "1e5",
        "1e300",
        "x",
        "🙂",
        "\ufeffu1",
        "u\u2028v",
        "a\x0bb",
    ),
    *(
        "99999999999999999999999",
        "1600000000000000000",
        "1600000000000",
        "20150511",
        "2020-09-13",
        "2020-09-13T12:26:40Z",
    ),
    *(
        "1600000000.75",
        "4102444800",
        "4102444801",
        "9223372036854775807",
        "9223372036854775808",
        "007",
        "+5",
        " 7",
        "7 ",
    ),
)


def some(draw: random.Random, first: int, end: int) -> list[int]:
    """A few places, rarely up to a quarter of all."""
    if end <= first:
        return []
    most = max(1, (end - first) // 4) if draw.random() < 0.2 else 3
    return sorted(draw.sample(range(first, end), min(draw.randint(1, most), end - first)))


# Cells.


def swap_columns_of_some_rows(draw: random.Random, log: Log) -> None:
    for row in some(draw, log.first, len(log.cells)):
        draw.shuffle(log.cells[row])


def swap_columns(draw: random.Random, log: Log) -> None:
    order = draw.sample(range(len(log.cells[0])), len(log.cells[0]))
    whole = draw.random() < 0.5  # with the header
    log.cells = [
        [row[place] for place in order] if whole or (number >= log.first and len(row) == len(order)) else row
        for number, row in enumerate(log.cells)
        if len(row) == len(order)
    ]
    if not (whole and log.first):
        log.form = replace(log.form, units=ALL_UNITS)


def replace_values(draw: random.Random, log: Log) -> None:
    value = draw.choice(ODD)
    column = draw.randrange(len(log.cells[0]))
    for row in some(draw, log.first, len(log.cells)):
        if column < len(log.cells[row]):
            log.cells[row][column] = value


def change_field_counts(draw: random.Random, log: Log) -> None:
    for row in some(draw, log.first, len(log.cells)):
        if draw.random() < 0.5:
            log.cells[row] = log.cells[row][:-1]
        else:
            log.cells[row] = [*log.cells[row], draw.choice(("", "more"))]


def duplicate_rows(draw: random.Random, log: Log) -> None:
    for row in reversed(some(draw, 0, len(log.cells))):
        log.cells.insert(draw.randint(row, len(log.cells)), list(log.cells[row]))


def drop_rows(draw: random.Random, log: Log) -> None:
    for row in reversed(some(draw, 0, len(log.cells))):
        del log.cells[row]
    log.cells = log.cells or [["", ""]]


def change_header(draw: random.Random, log: Log) -> None:
    head = log.cells[0]
    place = draw.randrange(len(head))
    changes: list[list[list[str]]] = [
        [],
        [[f" {name} " for name in head]],
        [[f'"{name}"' for name in head]],
        [[*head[:place], "renamed", *head[place + 1 :]]],
        [[*head[:place], head[0], *head[place + 1 :]]],
        [["number", *head]],
        [["# a comment"], head],
        [head, head],
        [["user", "item", "time"], head],
        [[str(number) for number in range(len(head))], head],
    ]
    log.cells[:1] = draw.choice(changes)
    log.cells = log.cells or [head]


# Lines.


def replace_delimiters(draw: random.Random, log: Log) -> None:
    new = draw.choice([" " if text == BLANKS else text for text in DELIMITERS])
    everywhere = draw.random() < 0.4
    places = range(len(log.lines)) if everywhere else some(draw, 0, len(log.lines))
    for place in places:
        log.lines[place] = log.lines[place].replace(log.delimiter, new)
    if everywhere:
        log.form = replace(log.form, delimiters=DELIMITERS)
        log.delimiter = new


def change_line_ends(draw: random.Random, log: Log) -> None:
    end = draw.choice(("\r\n", "\n", "\r", "\r\r\n", "\n\r", "", "\n\n"))
    places = range(len(log.lines)) if draw.random() < 0.4 else some(draw, 0, len(log.lines))
    for place in places:
        log.lines[place] = log.lines[place].rstrip("\r\n") + end


def insert_blank_lines(draw: random.Random, log: Log) -> None:
    for place in reversed(some(draw, 0, len(log.lines) + 1)):
        log.lines.insert(place, draw.choice(("\n", "\n\n", "\r\n", "  \n", "\t\n")))


def insert_characters(draw: random.Random, log: Log) -> None:
    character = draw.choice(("\0", '"', "'", "\\", "\r", "\ufeff", "\x1a", "\x85", " ", "::", log.delimiter))
    for place in some(draw, 0, len(log.lines)):
        cut = draw.randint(0, len(log.lines[place].rstrip("\r\n")))
        log.lines[place] = log.lines[place][:cut] + character + log.lines[place][cut:]


def insert_quotes(draw: random.Random, log: Log) -> None:
    kind = draw.randrange(4)
    for place in some(draw, 0, len(log.lines)):
        bare = log.lines[place].rstrip("\r\n")
        fields, end = bare.split(log.delimiter), log.lines[place][len(bare) :]
        field = draw.randrange(len(fields))
        wrapped = (f'"{fields[field]}', f'{fields[field]}"', f'"{fields[field]}"', f'"{fields[field]}"x')
        fields[field] = wrapped[kind]
        log.lines[place] = log.delimiter.join(fields) + end


def cut_lines(draw: random.Random, log: Log) -> None:
    for place in some(draw, 0, len(log.lines)):
        bare = log.lines[place].rstrip("\r\n")
        log.lines[place] = bare[: draw.randint(0, len(bare))] + log.lines[place][len(bare) :]


# Bytes: of a text, and of what is compressed.


def flip_bytes(draw: random.Random, log: Log) -> None:
    data = bytearray(log.data)
    for place in some(draw, 0, len(data))[:3]:
        data[place] ^= draw.choice((1, 0x20, 0x80, 0xFF, draw.randint(1, 255)))
    log.data = bytes(data)


def insert_bytes(draw: random.Random, log: Log) -> None:
    place = draw.randint(0, len(log.data))
    log.data = log.data[:place] + draw.randbytes(draw.choice((1, 2, 8))) + log.data[place:]


def delete_bytes(draw: random.Random, log: Log) -> None:
    place = draw.randrange(len(log.data) + 1)
    log.data = log.data[:place] + log.data[place + draw.choice((1, 2, 30)) :]


def cut_the_end(draw: random.Random, log: Log) -> None:
    log.data = log.data[: draw.choice((draw.randint(0, len(log.data)), len(log.data) - draw.randint(0, 9)))]


def zero_bytes(draw: random.Random, log: Log) -> None:
    place, length = draw.randrange(len(log.data) + 1), draw.choice((4, 50, 400))
    zeros = bytes(len(log.data[place : place + length]))
    log.data = log.data[:place] + zeros + log.data[place + length :]


def reencode(draw: random.Random, log: Log) -> None:
    text = log.data.decode(log.encoding, "replace").removeprefix("\ufeff")
    marked = "\ufeff" if draw.random() < 0.7 else ""
    target = draw.choice(("latin-1", "utf-8", "utf-16-le", "utf-16-be", "utf-32-le"))
    log.data = (text if target == "latin-1" else marked + text).encode(target, "replace")


CELLS: tuple[Mutation, ...] = (
    *(swap_columns_of_some_rows, swap_columns, replace_values, replace_values, replace_values),
    *(change_field_counts, duplicate_rows, drop_rows, change_header),
)
LINES: tuple[Mutation, ...] = (
    *(replace_delimiters, change_line_ends, change_line_ends, insert_blank_lines, insert_characters),
    *(insert_characters, insert_quotes, insert_quotes, cut_lines),
)
BYTES: tuple[Mutation, ...] = (flip_bytes, insert_bytes, delete_bytes, cut_the_end)
TEXT: tuple[Mutation, ...] = (*BYTES, reencode)
PACKED: tuple[Mutation, ...] = (*BYTES, cut_the_end, zero_bytes)

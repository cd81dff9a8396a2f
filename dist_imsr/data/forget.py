"""Forgets users: takes all that prepared data hold of them out, and leaves the bytes of all other users as they are.

A forgotten id stays as a hole without a raw id, so that nobody is renumbered; a user who comes back is a new one. The
numbers of interactions by item stay, too: they are sums over all people.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dist_imsr.data.changes import Change
from dist_imsr.data.dataset import Dataset
from dist_imsr.data.manifest import Files, SpanEntry, manifest_entry, write_span_manifest
from dist_imsr.data.sequences import Sequences
from dist_imsr.data.staging import RAW_KEPT
from dist_imsr.data.table_files import write_batch, write_rows, write_table
from dist_imsr.data.user_list import UserList
from dist_imsr.data.writer import counts_of
from dist_imsr.files import link

_WORD = re.compile(r"\w+")
Keep = Callable[[pa.RecordBatch], pa.Array]
"""Which rows of a batch stay, bool."""


class Forgotten(NamedTuple):
    """What was taken out of a data set.

    Args:
        users: number of users that had an id.
        unknown: number of listed users that had none.
        rows: number of interactions by span, without the spans of which none was removed.
        waiting: number of interactions of users who waited for more.
        rejected: number of rejected rows whose text may name the users.
    """

    users: int
    unknown: int
    rows: dict[int, int]
    waiting: int
    rejected: int

    def describe(self) -> str:
        """A line, e.g. ``forgot 1 user: 7 rows (span 0: 4, span 2: 3), 0 waiting rows, 1 rejected row``."""
        spans = ", ".join(f"span {span}: {rows:,}" for span, rows in self.rows.items())
        rows = _counted(sum(self.rows.values()), "row") + (f" ({spans})" if spans else "")
        waiting, rejected = _counted(self.waiting, "waiting row"), _counted(self.rejected, "rejected row")
        line = f"forgot {_counted(self.users, 'user')}: {rows}, {waiting}, {rejected}"
        return line + (f"; {_counted(self.unknown, 'other id')} of the list had no id here" if self.unknown else "")


def forget(change: Change, listed: UserList) -> tuple[dict[str, Any], Forgotten]:
    """Takes users out of all spans whose rows are kept, of the raw ids, and of waiting and rejected rows.

    Spans that change get a new name; `changing` removes their old files.

    Args:
        change: of the data set.
        listed: the users; those who are not there, because they were forgotten before or never were, are counted.

    Returns:
        The new contents of ``dataset.json``; what was removed.
    """
    known = change.known
    users = np.unique(known.user_ids(listed.ids))
    users = users[users >= 0]
    entries, rows = [], dict[int, int]()
    for span, entry in enumerate(known.entries):
        changed = _without_users(change, span, users)
        rows |= {span: lost} if (lost := entry.interactions - changed.interactions) else {}
        entries.append(changed)
    removed, files = Counter[str](), Files()
    for name, file in known.manifest["files"].items():
        kind = re.split(r"[/.]", name)[0]
        kept = {name: file}
        if (keep := _kept_rows(kind, users, listed)) is not None:
            kept = _without_rows(change, name, keep)
        removed[kind] += file["rows"] - sum(entry["rows"] for entry in kept.values())
        files |= kept
    found = Forgotten(
        users=len(users),
        unknown=len(listed.ids) - len(users),
        rows=rows,
        waiting=removed["waiting"],
        rejected=removed["rejected"],
    )
    return change.commit(entries, files=files), found


def _without_users(change: Change, span: int, users: np.ndarray) -> SpanEntry:
    """Writes a span again without users; returns the span as it is if none of them is in it."""
    known, folder = change.known, change.folder
    entry = known.entries[span]
    new = users[known.known(users, span) & ~known.known(users, span - 1)]
    buckets = [] if entry.retired else np.unique(users % known.buckets).tolist()
    parts = {entry.bucket_file(bucket): known.sequences(span, bucket) for bucket in buckets}
    parts = {name: part for name, part in parts.items() if np.isin(users, part.users).any()}
    if not len(new) and not parts:
        return entry
    changed, files, lost = replace(entry, name=_next_version(entry.name)), Files(), Counter[str]()
    for place in (f"span={changed.name}", "users", "items"):
        (folder / place).mkdir(exist_ok=True)
    for name, file in known.files_of(entry).items():
        target = name.replace(f"span={entry.name}", f"span={changed.name}", 1)
        if entry.retired and name.startswith(f"span={entry.name}/bucket="):
            continue
        if name in parts:
            gone = np.isin(parts[name].users, users)
            files[target] = write_batch(folder, target, parts[name].batch.filter(pa.array(~gone)))
            lost.update(_counts(known, span, parts[name], gone))
        elif name == entry.ids_file("users") and len(new):
            files[target] = _write_holes(known.local(name), folder / target, new)
        else:
            link(known.local(name), folder / target)
            files[target] = file
    changed = replace(changed, **{name: getattr(entry, name) - count for name, count in lost.items()})
    return write_span_manifest(folder, changed, files)


def _counts(known: Dataset, span: int, part: Sequences, chosen: np.ndarray) -> dict[str, int]:
    """The share that some users of a bucket have in the counts of a span."""
    lengths = np.diff(part.offsets)
    new_item = part.items >= (known.entries[span - 1].items if span else 0)
    return counts_of(lengths[chosen], known.known(part.users[chosen], span - 1)) | {
        "interactions_with_new_items": int((new_item & chosen.repeat(lengths)).sum())
    }


def _write_holes(source: Path, target: Path, users: np.ndarray) -> dict[str, Any]:
    """Writes a part of the raw ids again, without those of users."""
    with pq.ParquetFile(source) as file:
        table = file.read()
    hole = pc.is_in(table["user"], pa.array(users))
    raw = pc.if_else(hole, pa.scalar(None, table["raw"].type), table["raw"])
    return manifest_entry(target, write_table(target, [pa.table({"user": table["user"], "raw": raw}).combine_chunks()]))


def _kept_rows(kind: str, users: np.ndarray, listed: UserList) -> Keep | None:
    """Which rows of a file stay that belongs to no span; None for one that holds nothing of users."""
    if kind == "waiting":
        raw = listed.ids.drop_null()
        return lambda rows: pc.invert(pc.is_in(rows["user"], raw))
    if kind == "truth_users":
        ids = pa.array(users)
        return lambda rows: pc.invert(pc.is_in(rows["user"], ids))
    if kind == "rejected":
        names = _Names(map(str, listed.names.to_pylist()))
        return lambda rows: pa.array([not names.may_be_in(text) for text in rows["raw"].to_pylist()], pa.bool_())
    return None


def _without_rows(change: Change, name: str, keep: Keep) -> Files:
    """Writes a Parquet file again with the rows that stay; returns its entry, or that of the file itself if all do."""
    known, path = change.known, PurePath(name)
    target = str(path.with_name(_next_version(path.stem) + path.suffix))
    with pq.ParquetFile(known.local(name)) as file:
        rows = (batch.filter(keep(batch)) for batch in file.iter_batches())
        files = write_rows(change.folder, target, file.schema_arrow, rows)
        return files if files[target]["rows"] < file.metadata.num_rows else {name: known.manifest["files"][name]}


class _Names:
    """Finds raw ids in the texts of rejected rows, rather too often than too seldom.

    A text may name a user if all words of the id are among its words, in any order and however they are quoted, or if
    the text was cut off.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._without_words = set[str]()
        self._by_word: dict[str, list[set[str]]] = {}
        for name in names:
            for words in (_words(name), _words(json.dumps(name))):  # a row of JSON may spell letters as escapes
                if words:
                    self._by_word.setdefault(max(words, key=len), []).append(words)
                else:
                    self._without_words.add(name)

    def may_be_in(self, text: str) -> bool:
        words = _words(text)
        return (
            len(text.encode()) >= RAW_KEPT
            or any(name <= words for word in words & self._by_word.keys() for name in self._by_word[word])
            or any(name in text for name in self._without_words)
        )


def _words(text: str) -> set[str]:
    """The words of a text; numbers without leading zeros, as 007 may be read as 7."""
    return {word.lstrip("0") for word in _WORD.findall(text)}


def _next_version(name: str) -> str:
    """``5``, ``5.1``, ``5.2`` ..."""
    first, _, version = name.partition(".")
    return f"{first}.{int(version or 0) + 1}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"

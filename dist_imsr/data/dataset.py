"""Opens and checks a prepared data set, and reads its buckets."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dist_imsr.addresses import Location, location
from dist_imsr.data.cache import CacheOptions
from dist_imsr.data.manifest import MANIFEST, TITLES, SpanEntry, read_manifest
from dist_imsr.data.remote import PARALLEL
from dist_imsr.data.sequences import Sequences
from dist_imsr.data.storage import open_storage
from dist_imsr.keys import free


@dataclass
class DataConfig(CacheOptions):
    """The prepared data.

    Args:
        path: a folder that launch/prepare.py wrote, or its address (s3://, gs://, hdfs:// or abfs://).
        verify: read every file once and compare its checksum.
    """

    path: Location = field(metadata=free(compare="grid"))
    verify: bool = field(default=False, metadata=free())

    @classmethod
    def of_run(cls, settings: Mapping[str, Any], path: Location | None = None) -> "DataConfig":
        """The data of a run, without verifying them.

        Args:
            settings: the section ``data`` of the run's config.yaml.
            path: where the data are now; by default, where the run read them.
        """
        cache = {key: settings[key] for key in ("cache", "cache_limit") if settings.get(key) is not None}
        if "cache" in cache:
            cache["cache"] = Path(cache["cache"])
        return cls(location(settings["path"]) if path is None else path, **cache)


class Dataset:
    """Interactions in spans and buckets of users, as written by launch/prepare.py.

    The object is the data set as it was when it was opened: an append that ends later is not in it.

    Attributes:
        path: the folder, or its address.
        manifest: the contents of ``dataset.json``.
        buckets: the number of buckets of users.
        entries: the spans, the pre-training span first.

    Raises:
        ValueError: naming the file, if the folder is no prepared data set, has another version's format, lacks a file,
            or has one whose size (or, with ``verify``, checksum) differs from its manifest.
    """

    def __init__(self, config: DataConfig) -> None:
        self.path = config.path
        self.manifest = read_manifest(config.path)
        self._columns: dict[tuple[str, str], pa.ChunkedArray] = {}  # cache of columns by table and name
        self._storage = open_storage(config.path, config, MANIFEST)
        path = config.path / MANIFEST
        try:
            self.buckets: int = self.manifest["n_buckets"]
            self.entries = [SpanEntry(**entry) for entry in self.manifest["spans"]]
            for name, entry in self.manifest["files"].items():
                self._storage.check(name, entry, config.verify)
            with ThreadPoolExecutor(PARALLEL) as pool:
                for span, files in zip(self.entries, pool.map(self.files_of, self.entries), strict=True):
                    for name, entry in files.items():
                        if not (span.retired and name.startswith(f"span={span.name}/bucket=")):
                            self._storage.check(name, entry, config.verify)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} lacks {error}: prepare the data again") from error
        except ValueError as error:
            raise ValueError(f"{error}: prepare the data again") from None

    def __getstate__(self) -> dict[str, Any]:
        # For processes that may have another working directory; caches stay behind.
        state = {name: self.__dict__[name] for name in ("manifest", "buckets", "entries", "_storage")}
        path = self.path.resolve() if isinstance(self.path, Path) else self.path
        return state | {"path": path, "_columns": {}}

    def files_of(self, span: SpanEntry) -> dict[str, dict[str, Any]]:
        """The files of a span with their manifest entries, those of retired rows included, by path in the folder.

        Raises:
            ValueError: if the span's manifest is missing or damaged.
        """
        self._storage.check(span.manifest_file, span.manifest, checksum=True)
        files: dict[str, dict[str, Any]] = json.loads(self._storage.map(span.manifest_file).to_pybytes())["files"]
        return files

    def local(self, name: str) -> Path:
        """The path of one of the data set's files on this machine, where it stays while the object lives.

        Args:
            name: its path in the folder.
        """
        return self._storage.local(name)

    @property
    def users(self) -> int:
        """The number of users."""
        return sum(self.entries[-1].users)

    @property
    def spans(self) -> int:
        """The number of spans, the pre-training span included: T + 1."""
        return len(self.entries)

    @property
    def first_kept(self) -> int:
        """The first span whose rows are not retired; those before it are."""
        return sum(entry.retired for entry in self.entries)

    @property
    def retired_rows(self) -> str:
        """Which rows are retired, for errors."""
        return f"the rows before span {self.first_kept} of {self.path} were retired (prepare.py --retire_before)"

    @cached_property
    def items_by_span(self) -> list[int]:
        """The number of items known by the end of each span."""
        return [entry.items for entry in self.entries]

    @cached_property
    def locals_by_span(self) -> list[int]:
        """The number of users known by the end of each span, in the bucket that has most."""
        return [max(entry.users) for entry in self.entries]

    @property
    def digests(self) -> list[str]:
        """The checksum of each span, which covers its files as they were first written."""
        return [entry.digest for entry in self.entries]

    @property
    def waiting_files(self) -> list[str]:
        """The path, in the folder, of the interactions of users who wait for more; none if all users count."""
        return [name for name in self.manifest["files"] if name.startswith("waiting/")]

    def digest_until(self, span: int) -> str:
        """A checksum over the spans up to one."""
        return hashlib.sha256("\n".join(self.digests[: span + 1]).encode()).hexdigest()

    def known(self, users: np.ndarray, span: int) -> np.ndarray:
        """Which users have interactions in the spans up to one.

        Args:
            users: ``[n]`` ids.
            span: the last span that counts; -1 for none.

        Returns:
            ``[n]`` bool.
        """
        if span < 0:
            return np.zeros(len(users), bool)
        local, bucket = np.divmod(users, self.buckets)
        return local < np.asarray(self.entries[span].users)[bucket]

    def raw_ids(self, table: str, ids: np.ndarray) -> pa.ChunkedArray:
        """Maps ids to the ids of the raw log.

        Args:
            table: ``users`` or ``items``.
            ids: ``[n]`` ids.

        Returns:
            ``[n]`` raw ids.
        """
        places = ids if table == "items" else self._order[np.searchsorted(self._sorted_users, ids)]
        return self._table(table, "raw").take(pa.array(places))

    def titles(self, items: np.ndarray) -> list[str]:
        """The titles of items, where the log had any (--columns.title), and raw ids of the others.

        Args:
            items: ``[n]`` ids.
        """
        paths = [self.local(name) for name in self.manifest["files"] if name.startswith(f"{TITLES}/")]
        wanted = pa.array(items, pa.int64())
        tables = (pq.read_table(path, filters=pc.field("item").isin(wanted)) for path in paths)
        known = {item: title for table in tables for item, title in zip(*table.to_pydict().values(), strict=True)}
        raw = self.raw_ids("items", items).to_pylist()
        return [known.get(item, str(one)) for item, one in zip(items.tolist(), raw, strict=True)]

    def raw_id_type(self, table: str) -> pa.DataType:
        """The type of the raw ids in the table ``users`` or ``items``."""
        return self.schema_of(self.entries[0].ids_file(table)).field("raw").type

    def schema_of(self, name: str) -> pa.Schema:
        """The schema of a Parquet file, whose footer alone is read.

        Args:
            name: its path in the folder.
        """
        with self._storage.open(name) as file:
            return pq.read_schema(file)

    @cached_property
    def forgotten(self) -> np.ndarray:
        """The ids of users who were forgotten (prepare.py --forget_users), ``[n]`` int64; they have no raw id."""
        found = [np.empty(0, np.int64)]
        for entry in self.entries:
            if "." in entry.name:
                users, raw = (self._read(entry.ids_file("users"), column) for column in ("user", "raw"))
                found.append(users.filter(raw.is_null()).to_numpy())
        return np.concatenate(found)

    def user_ids(self, raw: pa.Array) -> np.ndarray:
        """Maps raw ids of users to ids.

        Args:
            raw: ``[n]``, of the type of `raw_id_type`.

        Returns:
            ``[n]`` int64; -1 for unknown users.
        """
        place = pc.index_in(raw, self._table("users", "raw"), skip_nulls=True).fill_null(-1)
        place = place.to_numpy(zero_copy_only=False).astype(np.int64)
        users = np.append(self._table("users", "user").to_numpy().astype(np.int64), -1)
        return users[place]

    @cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(self._table("users", "user").to_numpy(), kind="stable")

    @cached_property
    def _sorted_users(self) -> np.ndarray:
        return self._table("users", "user").to_numpy()[self._order]

    def popularity(self, items: range, span: int, decay: float = 1.0) -> np.ndarray:
        """The number of interactions of items in the spans up to one, ``[len(items)]`` float64; retired rows count.

        Args:
            items: consecutive ids.
            span: the last span that counts.
            decay: by which a count is multiplied with each later span.
        """
        counts = np.zeros(len(items))
        for earlier in range(span + 1):
            ids, interactions = self.item_counts(earlier)
            place = slice(*np.searchsorted(ids, [items.start, items.stop]))
            counts *= decay
            counts[ids[place] - items.start] += interactions[place]
        return counts

    def item_counts(self, span: int) -> tuple[np.ndarray, np.ndarray]:
        """The items of a span ``[n]``, ascending, and the number of interactions of each ``[n]``; mapped, not read."""
        batch = self._open(self.entries[span].item_counts_file)
        return batch.column("item").to_numpy(), batch.column("interactions").to_numpy()

    def _table(self, name: str, column: str) -> pa.ChunkedArray:
        if (name, column) not in self._columns:
            self._columns[name, column] = pa.chunked_array(
                [chunk for entry in self.entries for chunk in self._read(entry.ids_file(name), column).chunks]
            )
        return self._columns[name, column]

    def _read(self, name: str, column: str) -> pa.ChunkedArray:
        path, buffer = self.path / name, self._map(name)
        try:
            return pq.ParquetFile(pa.BufferReader(buffer)).read(columns=[column])[column]
        except (pa.ArrowException, KeyError, OSError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} is no table of a prepared data set ({reason}): prepare it again") from error

    def sequences(self, span: int, bucket: int) -> Sequences:
        """Opens the file of one span (0 is the pre-training span) and bucket by memory map, without reading it.

        Raises:
            ValueError: naming the file, if it is no Arrow file of this format; naming the span, if it is retired.
        """
        entry = self.entries[span]
        if entry.retired:
            raise ValueError(f"{self.path}: the rows of span {span} were retired (prepare.py --retire_before)")
        path = self.path / entry.bucket_file(bucket)
        try:
            batch = self._open(entry.bucket_file(bucket))
            items, users = batch.column("items"), batch.column("user").to_numpy()
        except KeyError as error:
            raise ValueError(f"{path} is no span file of a prepared data set ({error}): prepare it again") from error
        return Sequences(users, items.offsets.to_numpy(), items.values.to_numpy(), batch)

    def sequences_of(self, span: int, buckets: Sequence[int]) -> list[Sequences]:
        """Opens the files of several buckets as `sequences` does; remote ones are fetched several at a time."""
        with ThreadPoolExecutor(PARALLEL) as pool:
            return list(pool.map(lambda bucket: self.sequences(span, bucket), buckets))

    def _open(self, name: str) -> pa.RecordBatch:
        buffer = self._map(name)
        try:
            return pa.ipc.open_file(pa.BufferReader(buffer)).get_batch(0)
        except (pa.ArrowException, OSError) as error:
            path = self.path / name
            raise ValueError(f"{path} is no span file of a prepared data set ({error}): prepare it again") from error

    def _map(self, name: str) -> pa.Buffer:
        try:
            return self._storage.map(name)
        except FileNotFoundError as error:
            path = self.path / name
            raise ValueError(f"{path} is gone: another command has changed the data; start this one again") from error

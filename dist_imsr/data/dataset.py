"""Opens and checks a prepared data set, and reads its buckets."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dist_imsr.files import check_file, check_version, digest_of
from dist_imsr.keys import free

FORMAT_VERSION = 1
HELD_OUT = 2  # interactions of a user and span: the last one for testing, the second last for validation
SHORTEST_SPLIT = 3  # a user with fewer interactions in a span trains on all of them


@dataclass
class DataConfig:
    """The prepared data.

    Args:
        path: a folder that launch/prepare.py wrote.
        verify: read every file once and compare its checksum.
    """

    path: Path = field(metadata=free(compare="grid"))
    verify: bool = field(default=False, metadata=free())


@dataclass(frozen=True)
class Sequences:
    """Views of the interactions of one bucket's users in one span, in a memory-mapped file.

    Args:
        users: ``[n]`` dense ids, ascending.
        offsets: ``[n + 1]``; user i's interactions are ``offsets[i] .. offsets[i + 1] - 1``, in time order.
        items: ``[offsets[-1]]`` dense ids.
        batch: the Arrow batch of all columns.
    """

    users: np.ndarray
    offsets: np.ndarray
    items: np.ndarray
    batch: pa.RecordBatch

    @cached_property
    def times(self) -> np.ndarray:
        """Unix seconds of each interaction."""
        return self.batch.column("times").values.to_numpy()

    @cached_property
    def met_before(self) -> np.ndarray:
        """Whether the user met the item in an earlier span, for each interaction."""
        return self.batch.column("met_before").values.to_numpy(zero_copy_only=False)


def held_out(lengths: np.ndarray) -> np.ndarray:
    """The number of each user's interactions in a span that training must not see.

    Args:
        lengths: ``[n]``, the number of interactions of each user.

    Returns:
        ``[n]``: 2 for users with at least 3 interactions, else 0.
    """
    return np.where(lengths >= SHORTEST_SPLIT, HELD_OUT, 0)


class Dataset:
    """Interactions in spans and buckets of users, as written by launch/prepare.py.

    Raises:
        ValueError: naming the file, if the folder is no prepared data set, was written by a newer version, lacks a
            file, or has one whose size (or, with ``verify``, checksum) differs from the manifest.
    """

    def __init__(self, config: DataConfig) -> None:
        self.path = config.path
        self.manifest = _read_manifest(config.path)
        self._columns: dict[tuple[str, str], pa.ChunkedArray] = {}  # cache of columns by table and name
        try:
            self.bucket_offsets: list[int] = self.manifest["bucket_offsets"]
            self.items_by_span: list[int] = self.manifest["items_by_span"]
            for name, entry in self.manifest["files"].items():
                check_file(config.path / "dataset.json", name, entry, config.verify)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{config.path / 'dataset.json'} lacks {error}: prepare the data again") from error
        except ValueError as error:
            raise ValueError(f"{error}: prepare the data again") from None

    @property
    def users(self) -> int:
        """The number of users."""
        return self.bucket_offsets[-1]

    @property
    def buckets(self) -> int:
        """The number of buckets."""
        return len(self.bucket_offsets) - 1

    @property
    def spans(self) -> int:
        """The number of spans, the pre-training span included: T + 1."""
        return len(self.items_by_span)

    @cached_property
    def digest(self) -> str:
        """The manifest's checksum, which covers every file, as the manifest lists their checksums."""
        return digest_of(self.path / "dataset.json")

    def raw_ids(self, table: str, ids: np.ndarray) -> pa.ChunkedArray:
        """Maps dense ids to the ids of the raw log.

        Args:
            table: ``users`` or ``items``.
            ids: ``[n]`` dense ids.

        Returns:
            ``[n]`` raw ids.
        """
        return self._table(table, "raw").take(pa.array(ids))

    def raw_id_type(self, table: str) -> pa.DataType:
        """The type of the raw ids in the table ``users`` or ``items``."""
        return pq.read_schema(self.path / f"{table}.parquet").field("raw").type

    def dense_user_ids(self, raw: pa.Array) -> np.ndarray:
        """Maps raw ids of users to dense ids.

        Args:
            raw: ``[n]``, of the type of `raw_id_type`.

        Returns:
            ``[n]`` int64; -1 for unknown users.
        """
        return (
            pc.index_in(raw, self._table("users", "raw")).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        )

    def popularity(self, items: range) -> np.ndarray:
        """The number of interactions of items in all spans, ``[len(items)]`` int64."""
        return self._table("items", "interactions").slice(items.start, len(items)).to_numpy().astype(np.int64)

    def _table(self, name: str, column: str) -> pa.ChunkedArray:
        if (name, column) not in self._columns:
            self._columns[name, column] = self._read(name, column)
        return self._columns[name, column]

    def _read(self, name: str, column: str) -> pa.ChunkedArray:
        path = self.path / f"{name}.parquet"
        try:
            return pq.read_table(path, columns=[column], memory_map=True)[column]
        except (pa.ArrowException, KeyError, OSError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} is no table of a prepared data set ({reason}): prepare it again") from error

    def sequences(self, span: int, bucket: int) -> Sequences:
        """Opens the file of one span (0 is the pre-training span) and bucket by memory map, without reading it.

        Raises:
            ValueError: naming the file, if it is no Arrow file of this format.
        """
        path = self.path / f"span={span}" / f"bucket={bucket:03d}.arrow"
        try:
            batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
            items = batch.column("items")
            users = batch.column("user").to_numpy()
        except (pa.ArrowException, KeyError, OSError) as error:
            raise ValueError(f"{path} is no span file of a prepared data set ({error}): prepare it again") from error
        return Sequences(users, items.offsets.to_numpy(), items.values.to_numpy(), batch)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "dataset.json"
    if not path.is_file():
        raise ValueError(f"data.path: {folder} holds no dataset.json: write it with launch/prepare.py")
    try:
        manifest = json.loads(path.read_text())
        version = manifest["format_version"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no manifest of a prepared data set ({error!r}): prepare it again") from error
    check_version(path, version, FORMAT_VERSION)
    return manifest

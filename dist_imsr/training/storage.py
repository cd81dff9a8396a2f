"""Complete checkpoints on the disk: written all or not at all, checked, and loaded on any number of ranks."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from dist_imsr.distributed.rows import ShardRows
from dist_imsr.files import OtherFormat, check_file, check_version, link
from dist_imsr.training.checkpoint_storage import (
    CHECKSUM,
    FORMAT_VERSION,
    MANIFEST,
    PARTIAL,
    LoadPlanner,
    Reader,
    SavePlanner,
    Writer,
    checksum_line,
    commit,
    write_table,
)

Tables = dict[str, pa.RecordBatch]  # by the path of their file


class Stored:
    """A committed checkpoint: its manifest matches its checksum, and its files exist in their sizes.

    Args:
        folder: of the checkpoint.

    Raises:
        OtherFormat: if another version wrote it, in another format.
        ValueError: naming the file that is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, path = folder, folder / MANIFEST
        try:
            text, checksum = path.read_bytes(), (folder / CHECKSUM).read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ValueError(f"{error.filename} is missing") from None
        if checksum_line(text) != checksum:
            raise ValueError(f"{path} does not match {CHECKSUM}")
        try:
            self.manifest: dict[str, Any] = json.loads(text)
            version = self.manifest["format_version"]
            check_version(path, version, FORMAT_VERSION)
            if version < FORMAT_VERSION:
                first = "prepare the data again, and " if version < 2 else ""
                raise OtherFormat(
                    f"{path} has format {version}, of a version that computed other scores: {first}train from the "
                    "beginning, in another run_dir or with --overwrite true"
                )
            for name, entry in self.manifest["files"].items():
                check_file(path, name, entry, checksum=False)
            for tensor in self.manifest["tensors"].values():
                for _, size, name, start in tensor["chunks"]:
                    end = start + torch.Size(size).numel() * getattr(torch, tensor["dtype"]).itemsize
                    if not 0 <= start <= end <= self.manifest["files"][name]["bytes"]:
                        raise ValueError(f"{path} places tensors outside {name}")
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no manifest of a checkpoint ({error!r})") from error

    def verify(self, part: int = 0, parts: int = 1) -> None:
        """Reads files and compares their checksums.

        Args:
            part: which part of the files.
            parts: number of parts, of about the same size.

        Raises:
            ValueError: naming the file that is damaged.
        """
        files = sorted(self.manifest["files"].items(), key=lambda file: file[1]["bytes"])
        for name, entry in files[part::parts]:
            check_file(self.folder / MANIFEST, name, entry, checksum=True)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor over all ranks, by the name that it was saved under."""
        return tuple(self.manifest["tensors"][name]["size"])

    def load(self, tensors: dict[str, ShardRows], group: dist.ProcessGroup) -> None:
        """Loads saved values into tensors; collective.

        Args:
            tensors: by name; each rank may request any rows.
            group: with the gloo backend.
        """
        reader = Reader(self.folder, self.manifest)
        dcp.load(tensors, storage_reader=reader, planner=LoadPlanner(), process_group=group)

    def table(self, path: str) -> pa.RecordBatch:
        """Opens one of the tables by memory map.

        Args:
            path: that it was saved under.

        Raises:
            ValueError: if the manifest does not name it.
        """
        if path not in self.manifest["files"]:
            raise ValueError(f"{self.folder / MANIFEST} names no {path}")
        return pa.ipc.open_file(pa.memory_map(str(self.folder / path))).get_batch(0)


def store(
    folder: Path,
    tensors: dict[str, ShardRows],
    tables: Tables,
    facts: dict[str, Any],
    rank: int,
    group: dist.ProcessGroup,
) -> None:
    """Writes a checkpoint, whole or not at all; collective.

    Args:
        folder: its place once it is complete; if there is an older one, as in `commit`.
        tensors: this rank's rows, by name; on the host.
        tables: this rank's, by a path that no other rank uses.
        facts: further keys of the manifest, from rank 0.
        rank: of this process; rank 0 makes the folder and commits it.
        group: with the gloo backend, and no other traffic meanwhile.

    Raises:
        OSError: on all ranks, naming those on which the disk was full or failed; nothing of the new checkpoint is left,
            and an older one in its place is untouched.
    """
    writer = Writer(folder, rank, tables, facts)
    try:
        dcp.save(tensors, storage_writer=writer, planner=SavePlanner(), process_group=group)
    except CheckpointException as error:
        if rank == 0:
            shutil.rmtree(writer.partial, ignore_errors=True)
        failures = {rank: failure for rank, (failure, _) in error.failures.items()}
        if all(isinstance(failure, OSError) for failure in failures.values()):
            raise OSError("; ".join(f"rank {rank}: {failure}" for rank, failure in failures.items())) from None
        raise RuntimeError(str(error)) from error


def store_again(stored: Stored, paths: Iterable[str], change: Callable[[pa.RecordBatch], pa.RecordBatch]) -> None:
    """Writes a checkpoint with changed tables as its next version, whole or not at all; other files are links.

    Args:
        stored: the checkpoint.
        paths: of the tables to change.
        change: makes a new table of an old one.

    Raises:
        ValueError: naming a table that does not match its checksum.
        OSError: if the disk fails.
    """
    folder, files = stored.folder.with_name(stored.folder.name.partition(".")[0]), dict(stored.manifest["files"])
    partial, changed = folder.with_name(f"{PARTIAL}{folder.name}"), set(paths)
    shutil.rmtree(partial, ignore_errors=True)
    for path, entry in stored.manifest["files"].items():
        (partial / path).parent.mkdir(parents=True, exist_ok=True)
        if path in changed:
            check_file(stored.folder / MANIFEST, path, entry, checksum=True)
            files[path] = write_table(partial / path, change(stored.table(path)))
        else:
            link(stored.folder / path, partial / path)
    commit(partial, folder, stored.manifest | {"files": files})

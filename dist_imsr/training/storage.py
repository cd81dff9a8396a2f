"""A checkpoint's folder as storage of torch.distributed.checkpoint: raw bytes, Arrow files, one manifest in JSON.

The library plans who writes and who reads which rows, on any numbers of ranks. Its own storage is not used: one keeps
its index as a pickle, the other holds all tensors in memory once more; neither knows checksums.
"""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, SavePlan
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from dist_imsr.distributed.rows import ShardRows
from dist_imsr.files import HashedFile, check_file, check_version, sync_folder

FORMAT_VERSION = 1
MANIFEST, CHECKSUM = "manifest.json", "manifest.json.sha256"  # as sha256sum writes and reads it
PARTIAL, DISCARDED = ".partial-", ".discarded-"  # what a folder's name begins with before and after its life
_SPARE = 64 << 20  # bytes of the disk that a save leaves to others
_ALIGNED = 64

Tables = dict[str, pa.RecordBatch]  # by the path of their file


class _SavePlanner(DefaultSavePlanner):
    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def lookup_object(self, index: MetadataIndex) -> torch.Tensor:
        return self.state_dict[index.fqn].values


class _LoadPlanner(DefaultLoadPlanner):
    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        # The library's own walks through all values and knows but tensors.
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        return self.state_dict[index.fqn].values


class _Writer(dcp.StorageWriter):
    """Writes one checkpoint; the coordinator makes its folder before anybody writes, and commits it when all have."""

    def __init__(self, folder: Path, rank: int, tables: Tables, facts: dict[str, Any]) -> None:
        self.folder, self.rank, self.tables, self.facts = folder, rank, tables, facts
        self.partial = folder.with_name(f"{PARTIAL}{folder.name}")

    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None:
        pass

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        written = (item.tensor_data for item in plan.items if item.tensor_data is not None)
        tensors = sum(data.chunk.sizes.numel() * data.properties.dtype.itemsize for data in written)
        return replace(plan, storage_data=tensors + sum(table.nbytes for table in self.tables.values()))

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        wanted, free = sum(plan.storage_data for plan in plans), shutil.disk_usage(self.folder.parent).free
        if wanted + _SPARE > free:
            raise OSError(
                f"{self.folder} wants {wanted >> 20:,} MiB and {_SPARE >> 20} to spare, but {free >> 20:,} are free"
            )
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir()
        return plans

    def write_data(self, plan: SavePlan, planner: Any) -> Future[list[WriteResult]]:
        results, name = list[WriteResult](), f"tensors-{self.rank:03d}.bin"
        if plan.items:
            with HashedFile(self.partial / name) as file:
                for item in plan.items:
                    tensor = planner.resolve_data(item).detach().cpu().contiguous()
                    results.append(WriteResult(item.index, tensor.nbytes, (name, file.bytes)))
                    file.write(tensor.view(torch.uint8).numpy())
                    file.write(bytes(-file.bytes % _ALIGNED))
            results.append(WriteResult(MetadataIndex(name), file.bytes, file.entry))
        for path, table in self.tables.items():
            (self.partial / path).parent.mkdir(parents=True, exist_ok=True)
            with HashedFile(self.partial / path) as file, pa.ipc.new_file(file, table.schema) as stream:
                stream.write_batch(table)
            results.append(WriteResult(MetadataIndex(path), file.bytes, file.entry))
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        told = {result.index: result.storage_data for rank in results for result in rank}
        files = {index.fqn: entry for index, entry in told.items() if isinstance(entry, dict)}
        for name in files:
            if not (self.partial / name).exists():
                raise OSError(f"{self.partial / name} is not to be seen here: all ranks must share one file system")
        tensors = {
            name: {
                "dtype": str(held.properties.dtype).removeprefix("torch."),
                "size": list(held.size),
                "chunks": [
                    [list(chunk.offsets), list(chunk.sizes), *told[MetadataIndex(name, chunk.offsets)]]
                    for chunk in held.chunks
                ],
            }
            for name, held in metadata.state_dict_metadata.items()
            if isinstance(held, TensorStorageMetadata)
        }
        manifest = {"format_version": FORMAT_VERSION, **self.facts, "tensors": tensors, "files": files}
        text = json.dumps(manifest, separators=(",", ":")).encode()
        with HashedFile(self.partial / MANIFEST) as file:
            file.write(text)
        with HashedFile(self.partial / CHECKSUM) as check:
            check.write(_checksum_line(hashlib.sha256(text).hexdigest()))
        for folder in {self.partial, *((self.partial / name).parent for name in files)}:
            sync_folder(folder)
        discard(self.folder, self.partial)
        sync_folder(self.folder.parent)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return False


class _Reader(dcp.StorageReader):
    """Reads a checkpoint that was opened."""

    def __init__(self, checkpoint: "Stored") -> None:
        self.checkpoint = checkpoint

    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None:
        pass

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        held = {}
        for name, told in self.checkpoint.manifest["tensors"].items():
            chunks = [ChunkStorageMetadata(torch.Size(first), torch.Size(size)) for first, size, *_ in told["chunks"]]
            properties = TensorProperties(getattr(torch, told["dtype"]))
            held[name] = TensorStorageMetadata(properties, torch.Size(told["size"]), chunks)
        return Metadata(held)  # type: ignore[arg-type]

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: Any) -> Future[None]:
        tensors, mapped = self.checkpoint.manifest["tensors"], dict[str, torch.Tensor]()
        for item in plan.items:
            told = tensors[item.storage_index.fqn]
            _, shape, name, start = next(
                chunk for chunk in told["chunks"] if torch.Size(chunk[0]) == item.storage_index.offset
            )
            if name not in mapped:
                size = self.checkpoint.manifest["files"][name]["bytes"]
                path = str(self.checkpoint.folder / name)
                mapped[name] = torch.from_file(path, shared=False, size=size, dtype=torch.uint8)
            dtype = getattr(torch, told["dtype"])
            stored = mapped[name][start : start + dtype.itemsize * torch.Size(shape).numel()].view(dtype).view(shape)
            for dim, (first, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                stored = stored.narrow(dim, first, length)
            planner.resolve_tensor(item).detach().copy_(stored)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return False


class Stored:
    """A committed checkpoint: its manifest matches its checksum, its files are there in their sizes.

    Args:
        folder: of the checkpoint.

    Raises:
        NewerFormat: if a newer version wrote it.
        ValueError: naming the file that is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, path = folder, folder / MANIFEST
        try:
            text, told = path.read_bytes(), (folder / CHECKSUM).read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ValueError(f"{error.filename} is missing") from None
        if _checksum_line(hashlib.sha256(text).hexdigest()) != told:
            raise ValueError(f"{path} does not match {CHECKSUM}")
        try:
            self.manifest: dict[str, Any] = json.loads(text)
            check_version(path, self.manifest["format_version"], FORMAT_VERSION)
            for name, entry in self.manifest["files"].items():
                check_file(path, name, entry, checksum=False)
            for told in self.manifest["tensors"].values():
                for _, size, name, start in told["chunks"]:
                    end = start + torch.Size(size).numel() * getattr(torch, told["dtype"]).itemsize
                    if not 0 <= start <= end <= self.manifest["files"][name]["bytes"]:
                        raise ValueError(f"{path} places tensors outside {name}")
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no manifest of a checkpoint ({error!r})") from error

    def verify(self, part: int = 0, parts: int = 1) -> None:
        """Reads files and compares their checksums.

        Args:
            part: which of the parts of all files.
            parts: how many there are, of about the same size.

        Raises:
            ValueError: naming the file that is damaged.
        """
        files = sorted(self.manifest["files"].items(), key=lambda file: file[1]["bytes"])
        for name, entry in files[part::parts]:
            check_file(self.folder / MANIFEST, name, entry, checksum=True)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor over all ranks.

        Args:
            name: as it was saved.

        Returns:
            The shape.
        """
        return tuple(self.manifest["tensors"][name]["size"])

    def load(self, tensors: dict[str, ShardRows], group: dist.ProcessGroup) -> None:
        """Fills tensors with what was saved; collective.

        Args:
            tensors: by name; each rank may ask for any rows.
            group: speaks gloo.
        """
        dcp.load(tensors, storage_reader=_Reader(self), planner=_LoadPlanner(), process_group=group)

    def table(self, path: str) -> pa.RecordBatch:
        """Opens one of the tables by memory map.

        Args:
            path: as it was saved.

        Returns:
            The rows.

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
        folder: where it is to stand once it is complete; an older one is replaced.
        tensors: this rank's rows, by name; on the host.
        tables: this rank's, by a path that no other rank uses.
        facts: what rank 0 adds to the manifest.
        rank: of this process; rank 0 makes the folder and commits it.
        group: speaks gloo, to nobody else at the same time.

    Raises:
        OSError: on all ranks, naming those on which the disk was full or failed; nothing of the new checkpoint is left,
            and what stood in the folder's place still does.
    """
    writer = _Writer(folder, rank, tables, facts)
    try:
        dcp.save(tensors, storage_writer=writer, planner=_SavePlanner(), process_group=group)
    except CheckpointException as error:
        if rank == 0:
            shutil.rmtree(writer.partial, ignore_errors=True)
        failures = {rank: failure for rank, (failure, _) in error.failures.items()}
        if all(isinstance(failure, OSError) for failure in failures.values()):
            raise OSError("; ".join(f"rank {rank}: {failure}" for rank, failure in failures.items())) from None
        raise RuntimeError(str(error)) from error


def discard(folder: Path, successor: Path | None = None) -> None:
    """Removes a checkpoint, so that none is ever seen in part.

    Args:
        folder: of the checkpoint; it may be missing.
        successor: what takes its place.
    """
    doomed = folder.with_name(f"{DISCARDED}{folder.name}")
    if folder.exists():
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(folder, doomed)
    if successor is not None:
        try:
            os.rename(successor, folder)
        except OSError:
            if doomed.exists():
                os.rename(doomed, folder)
            raise
    if doomed.exists():
        shutil.rmtree(doomed, ignore_errors=successor is not None)


def _checksum_line(digest: str) -> bytes:
    return f"{digest}  {MANIFEST}\n".encode()

"""Storage of torch.distributed.checkpoint in one folder: raw bytes, Arrow files, one manifest in JSON.

The library plans which rank writes and reads which rows, for any numbers of ranks. Its own storages do not fit: one
keeps its index as a pickle, the other holds all tensors in memory a second time; neither has checksums.
"""

import contextlib
import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torch.distributed.checkpoint as dcp
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
from typing_extensions import override

from dist_imsr.files import HashedFile, sync_folder

FORMAT_VERSION = 3  # 1 had user ids that later users moved; 2 had scores without a scale
MANIFEST, CHECKSUM = "manifest.json", "manifest.json.sha256"  # as sha256sum writes and reads it
PARTIAL, DISCARDED = ".partial-", ".discarded-"  # prefixes of folders that are not complete, or not needed any more
_SPARE = 64 << 20  # bytes of the disk that a save leaves free
_ALIGNED = 64


class SavePlanner(DefaultSavePlanner):
    """Plans which rank writes which rows."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    @override
    def lookup_object(self, index: MetadataIndex) -> torch.Tensor:
        return self.state_dict[index.fqn].values


class LoadPlanner(DefaultLoadPlanner):
    """Plans which rank reads which rows."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    @override
    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        # The library's own method walks through all values and only supports tensors.
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    @override
    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        return self.state_dict[index.fqn].values


class Writer(dcp.StorageWriter):
    """Writes one checkpoint; the coordinator creates its folder before all ranks write, and commits it afterwards."""

    def __init__(self, folder: Path, rank: int, tables: dict[str, pa.RecordBatch], facts: dict[str, Any]) -> None:
        self.folder, self.rank, self.tables, self.facts = folder, rank, tables, facts
        self.partial = folder.with_name(f"{PARTIAL}{folder.name}")

    @override
    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None:
        pass

    @override
    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    @override
    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        written = (item.tensor_data for item in plan.items if item.tensor_data is not None)
        tensors = sum(data.chunk.sizes.numel() * data.properties.dtype.itemsize for data in written)
        return replace(plan, storage_data=tensors + sum(table.nbytes for table in self.tables.values()))

    @override
    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        needed, free = sum(plan.storage_data for plan in plans), shutil.disk_usage(self.folder.parent).free
        if needed + _SPARE > free:
            raise OSError(
                f"{self.folder} needs {needed >> 20:,} MiB and {_SPARE >> 20} to spare, but {free >> 20:,} are free"
            )
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir()
        return plans

    @override
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
            entry = write_table(self.partial / path, table)
            results.append(WriteResult(MetadataIndex(path), entry["bytes"], entry))
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    @override
    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        written = {result.index: result.storage_data for rank in results for result in rank}
        files = {index.fqn: entry for index, entry in written.items() if isinstance(entry, dict)}
        for name in files:
            if not (self.partial / name).exists():
                raise OSError(f"{self.partial / name} is not visible here: all ranks must share one file system")
        tensors = {
            name: {
                "dtype": str(tensor.properties.dtype).removeprefix("torch."),
                "size": list(tensor.size),
                "chunks": [
                    [list(chunk.offsets), list(chunk.sizes), *written[MetadataIndex(name, chunk.offsets)]]
                    for chunk in tensor.chunks
                ],
            }
            for name, tensor in metadata.state_dict_metadata.items()
            if isinstance(tensor, TensorStorageMetadata)
        }
        manifest = {"format_version": FORMAT_VERSION, **self.facts, "tensors": tensors, "files": files}
        commit(self.partial, self.folder, manifest)

    @override
    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return False


class Reader(dcp.StorageReader):
    """Reads the tensors of a checkpoint whose manifest is checked."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest

    @override
    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None:
        pass

    @override
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        tensors = {}
        for name, entry in self.manifest["tensors"].items():
            chunks = [ChunkStorageMetadata(torch.Size(first), torch.Size(size)) for first, size, *_ in entry["chunks"]]
            properties = TensorProperties(getattr(torch, entry["dtype"]))
            tensors[name] = TensorStorageMetadata(properties, torch.Size(entry["size"]), chunks)
        return Metadata(tensors)  # type: ignore[arg-type]

    @override
    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    @override
    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    @override
    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    @override
    def read_data(self, plan: LoadPlan, planner: Any) -> Future[None]:
        mapped = dict[str, torch.Tensor]()
        for item in plan.items:
            entry = self.manifest["tensors"][item.storage_index.fqn]
            _, shape, name, start = next(
                chunk for chunk in entry["chunks"] if torch.Size(chunk[0]) == item.storage_index.offset
            )
            if name not in mapped:
                size = self.manifest["files"][name]["bytes"]
                mapped[name] = torch.from_file(str(self.folder / name), shared=False, size=size, dtype=torch.uint8)
            dtype = getattr(torch, entry["dtype"])
            stored = mapped[name][start : start + dtype.itemsize * torch.Size(shape).numel()].view(dtype).view(shape)
            for dim, (first, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                stored = stored.narrow(dim, first, length)
            planner.resolve_tensor(item).detach().copy_(stored)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @override
    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return False


def write_table(path: Path, table: pa.RecordBatch) -> dict[str, Any]:
    """Writes an Arrow file; returns its entry in a manifest."""
    with HashedFile(path) as file, pa.ipc.new_file(file, table.schema) as stream:
        stream.write_batch(table)
    return file.entry


def commit(partial: Path, folder: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest of a checkpoint, and gives the checkpoint its name.

    No rename replaces a folder that is not empty. If the name is taken, the checkpoint becomes its next version,
    ``NAME.1``, which counts as newer, and the earlier ones are removed.

    Args:
        partial: the folder with all other files.
        folder: its place, without a version.
        manifest: its manifest.

    Raises:
        OSError: if the disk fails; earlier versions are untouched then.
    """
    text = json.dumps(manifest, separators=(",", ":")).encode()
    with HashedFile(partial / MANIFEST) as file:
        file.write(text)
    with HashedFile(partial / CHECKSUM) as file:
        file.write(checksum_line(text))
    for path in {partial, *((partial / name).parent for name in manifest["files"])}:
        sync_folder(path)
    earlier = [path for path in (folder, *folder.parent.glob(f"{folder.name}.*")) if path.exists()]
    version = 1 + max((int(path.suffix[1:] or 0) for path in earlier), default=-1)
    os.rename(partial, folder.with_name(f"{folder.name}.{version}") if version else folder)
    sync_folder(folder.parent)
    for path in earlier:
        with contextlib.suppress(OSError):  # it stays, and is older
            discard(path)


def discard(folder: Path, successor: Path | None = None) -> None:
    """Removes a checkpoint by a rename, so that no reader sees a part of it.

    Args:
        folder: of the checkpoint; it may be missing.
        successor: a folder that replaces it.
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


def checksum_line(manifest: bytes) -> bytes:
    """The contents of the manifest's checksum file."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()

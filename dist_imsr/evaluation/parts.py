"""One Parquet file that all ranks write together, atomically."""

import logging
import os
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq
import torch.distributed as dist

from dist_imsr.distributed.topology import Topology

logger = logging.getLogger(__name__)
_GROUP = 1 << 20  # rows per row group


class JointFile:
    """A context manager: each rank writes tables, and at the end rank 0 concatenates them in the order of ranks.

    Args:
        path: the file, in a folder that all ranks share; an existing file is replaced.
        topology: ranks and devices.
    """

    def __init__(self, path: Path, topology: Topology) -> None:
        self.path, self.topology = path, topology
        self._writer: pq.ParquetWriter | None = None
        self._buffer: list[pa.Table] = []

    def write(self, table: pa.Table) -> None:
        """Appends rows of this rank; all tables have the same schema, and every rank writes at least an empty one."""
        self._buffer.append(table)
        if sum(map(len, self._buffer)) >= _GROUP:
            self._flush()

    def __enter__(self) -> "JointFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._buffer:
                self._flush()
            if self._writer is not None:
                self._writer.close()
            if kind is None:
                dist.barrier()
                if self.topology.rank == 0:
                    self._join()
                dist.barrier()
        finally:
            self._part(self.topology.rank).unlink(missing_ok=True)

    def _flush(self) -> None:
        table = pa.concat_tables(self._buffer).combine_chunks()
        self._buffer.clear()
        self._writer = self._writer or pq.ParquetWriter(self._part(self.topology.rank), table.schema)
        self._writer.write_table(table)

    def _join(self) -> None:
        if not self._part(0).exists():
            logger.warning("%s is not written: there are no users", self.path)
            return
        partial = self.path.with_name(f".{self.path.name}.partial")
        try:
            with pq.ParquetWriter(partial, pq.read_schema(self._part(0))) as joined:
                for rank in range(self.topology.world_size):
                    with pq.ParquetFile(self._part(rank)) as part:
                        for group in range(part.num_row_groups):
                            joined.write_table(part.read_row_group(group))
            os.replace(partial, self.path)
        finally:
            partial.unlink(missing_ok=True)

    def _part(self, rank: int) -> Path:
        return self.path.with_name(f".{self.path.name}.{rank:03d}.partial")

"""One Parquet file that all ranks write; there whole or not at all."""

import logging
import os
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq
import torch.distributed as dist

from dist_imsr.distributed.topology import Topology

logger = logging.getLogger(__name__)
_GROUP = 1 << 20  # rows of a row group


class JointFile:
    """A context manager; each rank writes tables, and rank 0 joins them in the order of ranks when all are done.

    Args:
        path: the file, in a folder that all ranks see; an older one is replaced.
        topology: this rank's place.
    """

    def __init__(self, path: Path, topology: Topology) -> None:
        self.path, self.topology = path, topology
        self._writer: pq.ParquetWriter | None = None
        self._held: list[pa.Table] = []

    def write(self, table: pa.Table) -> None:
        """Adds this rank's next rows; every rank must write at least once, be it a table without rows.

        Args:
            table: of one schema.
        """
        self._held.append(table)
        if sum(len(held) for held in self._held) >= _GROUP:
            self._flush()

    def __enter__(self) -> "JointFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._held:
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
        table = pa.concat_tables(self._held).combine_chunks()
        self._held.clear()
        self._writer = self._writer or pq.ParquetWriter(self._part(self.topology.rank), table.schema)
        self._writer.write_table(table)

    def _join(self) -> None:
        if not self._part(0).exists():
            logger.warning("%s is not written: there is nobody to write of", self.path)
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

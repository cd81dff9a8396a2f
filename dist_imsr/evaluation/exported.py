"""Reads the Arrow files that a run exports after a span, one from each rank."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from dist_imsr.data.dataset import Dataset
from dist_imsr.evaluation.repeats import Repeats

_FORMAT = "3"  # 1 had user ids that later users moved, and no format in its metadata; 2 had no scale of scores


@dataclass(frozen=True)
class Origin:
    """The state that a file was made from, as metadata of the file's schema.

    Args:
        span: the last trained span.
        data: the digest of the data up to it.
        strategy: by name.
        writes_all_users: whether the span wrote the interests of all users, and not only of its own.
        repeats: what scores add for repeats.
    """

    span: int
    data: str
    strategy: str
    writes_all_users: bool
    repeats: Repeats = field(default_factory=Repeats)

    @property
    def metadata(self) -> dict[str, str]:
        """Texts by key."""
        return {
            "format": _FORMAT,
            "span": str(self.span),
            "data": self.data,
            "strategy": self.strategy,
            "writes_all_users": str(self.writes_all_users),
            "repeats": json.dumps(self.repeats),
        }

    @classmethod
    def of(cls, path: Path, schema: pa.Schema) -> "Origin":
        """Reads the metadata of an exported file.

        Raises:
            ValueError: naming the file, if an older version wrote it.
        """
        found = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
        if found.get("format") != _FORMAT:
            raise ValueError(
                f"{path} is of another version of dist_imsr, which computed other scores: train again, on data that "
                "this version reads"
            )
        return cls(
            span=int(found["span"]),
            data=found["data"],
            strategy=found["strategy"],
            writes_all_users=found["writes_all_users"] == str(True),
            repeats=Repeats(*json.loads(found["repeats"])),
        )


def read_parts(run_dir: Path, span: int, name: str, dataset: Dataset, remedy: str) -> Iterator[pa.RecordBatch]:
    """Opens the files of one kind from all ranks.

    Args:
        run_dir: the run's folder.
        span: an exported span.
        name: ``interests``, ``items`` or ``detections``.
        dataset: the data set that the run must have been trained on, up to the span.
        remedy: advice in the error message, if it was another one.

    Yields:
        One batch for each rank of the run.

    Raises:
        ValueError: naming the file that is missing, or belongs to other data or another version.
    """
    part, ranks, data = 0, 1, dataset.digest_until(span)
    while part < ranks:
        path = run_dir / "spans" / f"span={span}" / f"{name}-{part:03d}.arrow"
        try:
            batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} cannot be read ({error}): train again with --training.export every") from error
        if Origin.of(path, batch.schema).data != data:
            raise ValueError(f"{path} was written over other data than {dataset.path}: {remedy}")
        ranks, part = int(batch.schema.metadata[b"ranks"]), part + 1
        yield batch

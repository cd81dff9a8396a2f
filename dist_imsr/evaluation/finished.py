"""Loads the state of a finished run after a span, on any number of ranks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import yaml

from dist_imsr.addresses import Location
from dist_imsr.config import import_modules, section_of
from dist_imsr.data.batch import BatchConfig
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.distributed.catalogue import Catalogue, CatalogueConfig
from dist_imsr.distributed.interest_store import InterestStore, InterestStoreConfig
from dist_imsr.distributed.topology import Topology
from dist_imsr.evaluation.exported import Origin, read_parts
from dist_imsr.evaluation.ranking import Ranker, RankingConfig
from dist_imsr.model.extractors import ModelConfig

_ROWS = 1 << 14  # rows of the item table that are copied at a time


class FinishedRun:
    """The folder, configuration and data set of a run; reads nothing heavy.

    Args:
        run_dir: the folder of a run that exported spans.
        data: folder or address of the prepared data; None for the one in the run's configuration.

    Raises:
        ValueError: naming the file that is missing or does not belong to a run.
    """

    def __init__(self, run_dir: Path, data: Location | None = None) -> None:
        path = run_dir / "config.yaml"
        if not path.is_file():
            raise ValueError(f"run_dir: {run_dir} holds no config.yaml: name the folder of a run")
        self.folder = run_dir
        try:
            self.settings: dict[str, Any] = yaml.safe_load(path.read_text())
            import_modules(self.settings.get("imports") or [])
            self.model = section_of(ModelConfig, self.settings["model"])
            self.batch = BatchConfig(**self.settings["batch"])
            own, self.seed = DataConfig.of_run(self.settings["data"], data), int(self.settings["seed"])
        except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no configuration of a run ({' '.join(str(error).split())})") from error
        folders = run_dir.glob("spans/span=*")
        self.spans = sorted(int(number) for number in (folder.name[5:] for folder in folders) if number.isdecimal())
        if not self.spans:
            raise ValueError(f"run_dir: {run_dir} holds no spans/: train with --training.export last or every")
        if data is None and isinstance(own.path, Path) and not own.path.is_dir():
            raise ValueError(f"data: {own.path}, the run's data, is no folder here: name it with --data")
        self.dataset = Dataset(own)

    def resolve_span(self, span: int | None) -> int:
        """The exported span, or the last one for None.

        Raises:
            ValueError: naming the exported spans, if this one is not among them; naming the data, if they lack it.
        """
        if span is None:
            span = self.spans[-1]
        if span not in self.spans:
            exported = ", ".join(map(str, self.spans))
            raise ValueError(
                f"span: {self.folder} holds no span {span}, only {exported}: train with --training.export every"
            )
        if span >= self.dataset.spans:
            raise ValueError(
                f"data: {self.folder} stands behind span {span}, and {self.dataset.path} has {self.dataset.spans} "
                "spans: name the run's with --data"
            )
        return span


class SpanState:
    """Interests and item embeddings after a span, sharded over the current ranks, and their `Origin`; collective.

    Args:
        run: the run.
        span: an exported span.
        items: the number of rows of the item table: the items known by the end of the span, or more, whose rows have
            their initial values.
        topology: ranks and devices.
        ranking: how the catalogue is ranked.

    Raises:
        ValueError: naming the file that is missing or belongs to other data, or the folder whose files do not contain
            every item exactly once.
    """

    def __init__(self, run: FinishedRun, span: int, items: int, topology: Topology, ranking: RankingConfig) -> None:
        self.run, self.span, dim = run, span, run.model.dim
        self.origin = Origin.of(run.folder, next(self._tables("items")).schema)
        scale = run.settings["catalogue"]["init_scale"]
        config = CatalogueConfig("sgd", headroom=0.0, init_scale=scale)  # SGD has no state beside the rows
        self.catalogue = Catalogue(config, [items], dim, run.seed, topology, extra=run.model.row_width - dim)
        users_per_bucket = run.dataset.locals_by_span[span]
        self.store = InterestStore.build(
            InterestStoreConfig(), run.dataset.buckets, users_per_bucket, dim, 0, run.seed, topology
        )
        self.ranker = Ranker(self.catalogue, topology, run.model.scoring, ranking)
        self._load_items()
        self._load_interests()

    def _load_items(self) -> None:
        """Copies this rank's rows from the mapped files straight into the table, some at a time."""
        rows, weight, known = self.catalogue.rows, self.catalogue.flushed_weight(), self.run.dataset.items_by_span
        found = list[np.ndarray]()
        for table in self._tables("items"):
            items, vectors = table["item"].to_numpy(), vectors_of(table)
            first, last = np.searchsorted(items, (rows.start, rows.stop))
            found.append(items[first:last])
            for begin in range(first, last, _ROWS):
                part = slice(begin, min(begin + _ROWS, last))
                place = torch.from_numpy(items[part] - rows.start).to(weight.device)
                weight[place] = torch.from_numpy(vectors[part].copy()).to(weight.device)
        expected = np.arange(rows.start, max(rows.start, min(rows.stop, known[self.span])))
        if not np.array_equal(np.sort(np.concatenate(found)), expected):
            folder = self.run.folder / "spans" / f"span={self.span}"
            raise ValueError(f"{folder} does not hold every item once: train again with --training.export every")

    def _load_interests(self) -> None:
        forgotten, owned = self.run.dataset.forgotten, self.store.owned
        found, vectors = list[np.ndarray](), list[np.ndarray]()
        for table in self._tables("interests"):
            users = table["user"].to_numpy()
            mine = owned.owns(users) & ~np.isin(users, forgotten)
            found.append(users[mine].astype(np.int64))
            vectors.append(vectors_of(table)[mine])
        users = np.concatenate(found)
        order = users.argsort(kind="stable")  # an interest is in one file with all others of its user
        values = torch.from_numpy(np.concatenate(vectors)[order])
        self.store.load(torch.from_numpy(owned.rows(users[order])), values=values)

    def _tables(self, name: str) -> Iterator[pa.RecordBatch]:
        return read_parts(self.run.folder, self.span, name, self.run.dataset, "name the run's with --data")


def vectors_of(table: pa.RecordBatch) -> np.ndarray:
    """The column ``vector`` of an exported file, ``[n, d]`` float32."""
    column = table["vector"]
    return column.values.to_numpy().reshape(-1, column.type.list_size)

"""What a span of a finished run left, loaded on any number of ranks."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import yaml

from dist_imsr.config import import_modules, section_of
from dist_imsr.data.batch import BatchConfig
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.distributed.catalogue import Catalogue, CatalogueConfig
from dist_imsr.distributed.interest_store import InterestStore, InterestStoreConfig
from dist_imsr.distributed.topology import Topology
from dist_imsr.evaluation.ranking import Ranker, RankingConfig
from dist_imsr.exported import read_parts
from dist_imsr.model.extractors import ModelConfig


class FinishedRun:
    """A run's folder and the data that it names, before anything heavy is read.

    Args:
        run_dir: of a run that exported spans.
        data: where its prepared data stand; None for where they stood.

    Raises:
        ValueError: naming the file that is missing or no run's.
    """

    def __init__(self, run_dir: Path, data: Path | None = None) -> None:
        path = run_dir / "config.yaml"
        if not path.is_file():
            raise ValueError(f"run_dir: {run_dir} holds no config.yaml: name the folder of a run")
        self.folder = run_dir
        try:
            self.settings: dict[str, Any] = yaml.safe_load(path.read_text())
            import_modules(self.settings.get("imports", []))
            self.model = section_of(ModelConfig, self.settings["model"])
            self.batch = BatchConfig(**self.settings["batch"])
            stood, self.seed = Path(self.settings["data"]["path"]), int(self.settings["seed"])
        except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no configuration of a run ({' '.join(str(error).split())})") from error
        folders = run_dir.glob("spans/span=*")
        self.spans = sorted(int(number) for number in (folder.name[5:] for folder in folders) if number.isdecimal())
        if not self.spans:
            raise ValueError(f"run_dir: {run_dir} holds no spans/: train with --training.export last or every")
        if data is None and not stood.is_dir():
            raise ValueError(f"data: {stood}, where the run's data stood, is no folder here: name it with --data")
        self.dataset = Dataset(DataConfig(data or stood))

    def at(self, span: int | None) -> int:
        """Chooses a span.

        Args:
            span: the one that is asked for; None for the last.

        Returns:
            A span that was exported.

        Raises:
            ValueError: naming the spans that were.
        """
        if span is None:
            return self.spans[-1]
        if span not in self.spans:
            there = ", ".join(map(str, self.spans))
            raise ValueError(
                f"span: {self.folder} holds no span {span}, only {there}: train with --training.export every"
            )
        return span


class SpanState:
    """Interests and items as a span left them, sharded over the ranks at hand; collective.

    Args:
        run: the run.
        span: which span.
        items: how many items get a row: those known by the end of the span, or more, whose rows are as they begin.
        topology: this rank's place.
        ranking: how the catalogue is ranked.

    Raises:
        ValueError: naming the file that is missing or belongs to other data, or the folder whose files do not hold
            every item once.
    """

    def __init__(self, run: FinishedRun, span: int, items: int, topology: Topology, ranking: RankingConfig) -> None:
        self.folder, self.dataset = run.folder / "spans" / f"span={span}", run.dataset
        dim, offsets = run.model.dim, run.dataset.bucket_offsets
        scale = CatalogueConfig(headroom=0.0, init_scale=run.settings["catalogue"]["init_scale"])
        self.catalogue = Catalogue(scale, [items], dim, run.seed, topology)
        self.store = InterestStore.build(InterestStoreConfig(), offsets, dim, 0, run.seed, topology)
        self.ranker = Ranker(self.catalogue, topology, run.model.score, ranking)
        rows = self.catalogue.rows
        found, vectors = self._part("items", "item", rows)
        wanted = np.arange(rows.start, max(rows.start, min(rows.stop, run.dataset.items_by_span[span])))
        if not np.array_equal(found, wanted):
            raise ValueError(f"{self.folder} does not hold every item once: train again with --training.export every")
        self.catalogue.weight[: len(found)] = torch.from_numpy(vectors).to(topology.device)
        mine = range(self.store.first_user, self.store.first_user + len(self.store.counts))
        owners, vectors = self._part("interests", "user", mine)
        assert (np.diff(owners) >= 0).all()
        self.store.load(torch.from_numpy(owners - self.store.first_user), values=torch.from_numpy(vectors))

    def _part(self, name: str, key: str, ids: range) -> tuple[np.ndarray, np.ndarray]:
        """The rows of some ids from all files, ``[n]`` and ``[n, d]``; no other row leaves the disk."""
        found, vectors = list[np.ndarray](), list[np.ndarray]()
        for table in read_parts(self.folder, name, self.dataset, "name the run's with --data"):
            place = slice(*np.searchsorted(table[key].to_numpy(), (ids.start, ids.stop)))
            found.append(table[key].to_numpy()[place].astype(np.int64))
            vectors.append(vectors_of(table)[place])
        return np.concatenate(found), np.concatenate(vectors)


def vectors_of(table: pa.RecordBatch) -> np.ndarray:
    """The column ``vector``.

    Args:
        table: of an exported file.

    Returns:
        ``[n, d]`` float32.
    """
    column = table["vector"]
    return column.values.to_numpy().reshape(-1, column.type.list_size)

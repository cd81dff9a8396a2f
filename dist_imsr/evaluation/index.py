"""Item embeddings and interests with raw ids for other systems, and an index with its recall of exact ranks."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from dist_imsr.checks import require
from dist_imsr.data.dataset import Dataset
from dist_imsr.data.writer import write_table
from dist_imsr.distributed.topology import Topology
from dist_imsr.evaluation.finished import FinishedRun, SpanState
from dist_imsr.evaluation.ranking import RankingConfig
from dist_imsr.model.interests import Interests
from dist_imsr.model.scoring import score

_ROWS = 1 << 16  # written and indexed at a time


@dataclass
class IndexConfig:
    """A FAISS index over items, asked with one interest at a time.

    Args:
        kind: ``flat`` compares with all items; ``hnsw`` walks a graph of neighbours; ``ivf`` reads the nearest cells.
        links: of each item in hnsw's graph.
        cells: of ivf.
        probes: cells that ivf reads, and a 16th of the candidates that hnsw keeps while it walks.
        candidates: items that each interest brings, at least N of them, of which the score of all interests then takes
            the best.
        sample: users on whom recall is measured.
    """

    kind: Literal["flat", "hnsw", "ivf"] = "hnsw"
    links: int = 32
    cells: int = 1024
    probes: int = 16
    candidates: int = 100
    sample: int = 1000

    def __post_init__(self) -> None:
        for key, value in asdict(self).items():
            if key != "kind":
                least = 2 if key == "links" else 1  # FAISS crashes on graphs with a single link
                require(value >= least, f"index.{key}", value, f"at least {least}")


@dataclass
class ExportConfig:
    """Writes item embeddings and interests with raw ids, and a FAISS index with its recall.

    Args:
        run_dir: of a run that exported spans (--training.export last or every).
        output: a new folder: items.parquet (item, vector), interests.parquet (user, interest, birth_span, vector),
            items.faiss, whose numbers are the rows of items.parquet, and export.json.
        data: where the run's prepared data stand, if elsewhere than when it was trained.
        span: the trained span; the last that was exported by default.
        top: N of the recall.
        index: the index.
        ranking: how the catalogue is ranked.
    """

    run_dir: Path
    output: Path
    data: Path | None = None
    span: int | None = None
    top: int = 20
    index: IndexConfig = field(default_factory=IndexConfig)
    ranking: RankingConfig = field(default_factory=RankingConfig)

    def __post_init__(self) -> None:
        require(self.top >= 1, "top", self.top, "at least 1")
        require(not self.output.exists(), "output", str(self.output), "a folder that does not exist yet")
        require(self.output.parent.is_dir(), "output", str(self.output), "a new folder in one that exists")


def require_faiss() -> None:
    """Refuses to go on without FAISS.

    Raises:
        ValueError: telling what to install.
    """
    try:
        import faiss  # noqa: F401
    except ImportError:
        raise ValueError("index: the index needs FAISS: pip install 'dist-imsr[export]'") from None


def export(config: ExportConfig, run: FinishedRun, span: int, topology: Topology) -> dict[str, Any]:
    """Writes the folder, whole or not at all, on one rank: an index lives on one machine.

    Args:
        config: what is asked for.
        run: which run.
        span: its state.
        topology: a world of one.

    Returns:
        What export.json holds: ``span``, ``items``, ``interests``, ``users``, ``recall@N`` of the index against the
        exact top N (the mean over sampled users of the share that it finds) and ``sampled_users``.
    """
    import faiss

    assert topology.world_size == 1
    items = run.dataset.items_by_span[span]
    state = SpanState(run, span, items, topology, config.ranking)
    partial = config.output.with_name(f".{config.output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        weight = state.catalogue.weight[:items].numpy(force=True)
        _write_items(partial / "items.parquet", run.dataset, weight)
        _write_interests(partial / "interests.parquet", run.dataset, state)
        index = _build(config.index, weight)
        faiss.write_index(index, str(partial / "items.faiss"))
        told = {
            "span": span,
            "items": items,
            "interests": len(state.store.values),
            "users": int((state.store.counts > 0).sum()),
            **_recall(config, state, index, items),
            "index": asdict(config.index),
        }
        (partial / "export.json").write_text(json.dumps(told, indent=1) + "\n")
        partial.rename(config.output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return told


def _write_items(path: Path, dataset: Dataset, weight: np.ndarray) -> None:
    def batches() -> Iterator[pa.RecordBatch]:
        for first in range(0, len(weight), _ROWS):
            part = weight[first : first + _ROWS]
            raw = dataset.raw_ids("items", np.arange(first, first + len(part)))
            yield pa.record_batch({"item": raw.combine_chunks(), "vector": _lists(part)})

    write_table(path, batches())


def _write_interests(path: Path, dataset: Dataset, state: SpanState) -> None:
    store = state.store
    owners, first = store.owners.cpu(), store.offsets[:-1].cpu()
    slots = torch.arange(len(owners)) - first[owners]

    def batches() -> Iterator[pa.RecordBatch]:
        for begin in range(0, len(owners), _ROWS):
            part = slice(begin, begin + _ROWS)
            yield pa.record_batch(
                {
                    "user": dataset.raw_ids("users", (owners[part] + store.first_user).numpy()).combine_chunks(),
                    "interest": slots[part].int().numpy(),
                    "born": store.birth_span[part].numpy(force=True),
                    "vector": _lists(store.values[part].numpy(force=True)),
                }
            )

    write_table(path, batches())


def _build(config: IndexConfig, weight: np.ndarray) -> Any:
    import faiss

    dim = weight.shape[1]
    index: Any
    if config.kind == "flat":
        index = faiss.IndexFlatIP(dim)
    elif config.kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, config.links, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efSearch = max(16 * config.probes, config.candidates)
    else:
        cells = min(config.cells, max(1, len(weight) // 39))  # FAISS wants 39 items a cell to learn from
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, cells, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = min(config.probes, cells)
        index.train(weight)
    for first in range(0, len(weight), _ROWS):
        index.add(weight[first : first + _ROWS])
    return index


def _recall(config: ExportConfig, state: SpanState, index: Any, items: int) -> dict[str, float | int | None]:
    """Users at even distances; what each interest brings, ranked by the score of all of the user's interests."""
    have = (state.store.counts > 0).nonzero().squeeze(1)
    users = have[torch.linspace(0, max(len(have) - 1, 0), min(len(have), config.index.sample)).long()]
    shares: list[float] = []
    for block in users.split(256):
        interests = state.store.gather(block)
        _, exact = state.ranker.best(interests, items, config.top)
        for row, best in enumerate(exact):
            mine = Interests(interests.vectors[row : row + 1], interests.mask[row : row + 1])
            _, found = index.search(
                mine.vectors[mine.mask].numpy(force=True), min(max(config.index.candidates, config.top), items)
            )
            ids = torch.from_numpy(np.unique(found[found >= 0])).to(best.device)
            scores = score(mine, state.catalogue.weight[ids], state.ranker.how)[0]
            taken = ids[scores.topk(min(config.top, len(ids))).indices]
            best = best[best >= 0]
            shares.append(torch.isin(best, taken).double().mean().item())
    return {f"recall@{config.top}": float(np.mean(shares)) if shares else None, "sampled_users": len(shares)}


def _lists(vectors: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])

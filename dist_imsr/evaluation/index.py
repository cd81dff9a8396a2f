"""Exports item embeddings and interests with raw ids, and a FAISS index with its recall."""

import importlib.util
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from dist_imsr.addresses import Location
from dist_imsr.checks import require
from dist_imsr.data.dataset import Dataset
from dist_imsr.data.table_files import write_table
from dist_imsr.distributed.topology import Topology, connect, read_topology
from dist_imsr.evaluation.exported import Origin
from dist_imsr.evaluation.finished import FinishedRun, SpanState
from dist_imsr.evaluation.ranking import RankingConfig
from dist_imsr.model.interests import Interests
from dist_imsr.model.scoring import score

_ROWS = 1 << 16  # rows written or indexed at a time


@dataclass
class IndexConfig:
    """A FAISS index over items, queried with one interest at a time.

    Args:
        kind: ``flat`` compares with all items; ``hnsw`` searches a neighbour graph; ``ivf`` reads the nearest cells.
        links: links per item in the graph of hnsw.
        cells: cells of ivf.
        probes: cells that ivf reads, and a 16th of efSearch, the candidates of hnsw.
        candidates: items retrieved per interest, at least N; they are ranked by the score of all interests.
        sample: number of users for measuring recall.
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
        run_dir: the folder of a run that exported spans (--training.export last or every).
        output: a new folder with items.parquet (item, vector), interests.parquet (user, interest, born, vector),
            items.faiss, whose ids are row numbers of items.parquet, and export.json. ``born`` is the span in which an
            interest was created. The dot product of an interest's and an item's vector has the scale and the bias of
            scores, but not what repeats add. The metadata of the schemas name the span that the files stand behind, the
            digest of the data up to it, and the strategy.
        data: folder or address of the run's prepared data, if it was moved after training.
        span: the trained span; the last exported one by default.
        top: N of recall@N.
        index: the index.
        ranking: how the catalogue is ranked.
    """

    run_dir: Path
    output: Path
    data: Location | None = None
    span: int | None = None
    top: int = 20
    index: IndexConfig = field(default_factory=IndexConfig)
    ranking: RankingConfig = field(default_factory=RankingConfig)

    def __post_init__(self) -> None:
        require(self.top >= 1, "top", self.top, "at least 1")
        require(not self.output.exists(), "output", str(self.output), "a folder that does not exist yet")
        require(self.output.parent.is_dir(), "output", str(self.output), "a new folder in one that exists")


def require_faiss() -> None:
    """Raises a ValueError that names the package to install, if FAISS is missing."""
    if importlib.util.find_spec("faiss") is None:
        raise ValueError("index: the index needs FAISS: pip install 'dist-imsr[export]'")


def export_run(config: ExportConfig) -> str:
    """Exports a run's last exported span, or the one that is named, as launch/export.py does.

    Args:
        config: the run and the output.

    Returns:
        A line about what was exported.

    Raises:
        ValueError: naming the key or the file, or the package that is missing; for more than one rank.
    """
    require_faiss()
    ranks = read_topology().world_size
    require(ranks == 1, "ranks", ranks, "one: an index lives on one machine; use python")
    finished = FinishedRun(config.run_dir, config.data)
    done = export(config, finished, finished.resolve_span(config.span), connect())
    return (
        f"{config.output}: {done['items']:,} items, {done['interests']:,} interests of {done['users']:,} users after "
        f"span {done['span']}; the index finds {done[f'recall@{config.top}']:.4f} of the exact top {config.top} "
        f"({done['sampled_users']:,} users)"
    )


def export(config: ExportConfig, run: FinishedRun, span: int, topology: Topology) -> dict[str, Any]:
    """Writes the folder atomically, on one rank.

    Args:
        config: the output and its options.
        run: the run.
        span: an exported span.
        topology: of one rank.

    Returns:
        The content of export.json: ``span``, ``items``, ``interests``, ``users``, ``recall@N`` of the index against the
        exact top N (mean over the sampled users), ``sampled_users`` and ``index``.
    """
    import faiss

    assert topology.world_size == 1
    items = run.dataset.items_by_span[span]
    state = SpanState(run, span, items, topology, config.ranking)
    partial = config.output.with_name(f".{config.output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        weight = state.catalogue.flushed_weight()[:items]  # copied to the host in parts
        _write_items(partial / "items.parquet", run.dataset, weight, state.origin)
        _write_interests(partial / "interests.parquet", run.dataset, state)
        index = _build(config.index, weight)
        faiss.write_index(index, str(partial / "items.faiss"))
        summary = {
            "span": span,
            "data": state.origin.data,
            "strategy": state.origin.strategy,
            "items": items,
            "interests": len(state.store.values),
            "users": int((state.store.counts > 0).sum()),
            **_recall(config, state, index, items),
            "index": asdict(config.index),
        }
        (partial / "export.json").write_text(json.dumps(summary, indent=1) + "\n")
        partial.rename(config.output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return summary


def _write_items(path: Path, dataset: Dataset, weight: torch.Tensor, origin: Origin) -> None:
    def batches() -> Iterator[pa.RecordBatch]:
        for first in range(0, len(weight), _ROWS):
            part = weight[first : first + _ROWS].numpy(force=True)
            raw = dataset.raw_ids("items", np.arange(first, first + len(part)))
            yield pa.record_batch({"item": raw.combine_chunks(), "vector": _lists(part)}, metadata=origin.metadata)

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
                    "user": dataset.raw_ids("users", store.owned.users(owners[part]).numpy()).combine_chunks(),
                    "interest": slots[part].int().numpy(),
                    "born": store.birth_span[part].numpy(force=True),
                    "vector": _lists(_queries(state, store.values[part]).numpy(force=True)),
                },
                metadata=state.origin.metadata,
            )

    write_table(path, batches())


def _queries(state: SpanState, vectors: torch.Tensor) -> torch.Tensor:
    """The queries ``[n, row width]`` of interests ``[n, d]``."""
    one_each = Interests(vectors.unsqueeze(1), torch.ones(len(vectors), 1, dtype=torch.bool, device=vectors.device))
    return state.ranker.scoring.queries(one_each).vectors.squeeze(1)


def _build(config: IndexConfig, weight: torch.Tensor) -> Any:
    import faiss

    dim = weight.shape[1]
    index: Any
    if config.kind == "flat":
        index = faiss.IndexFlatIP(dim)
    elif config.kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, config.links, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efSearch = max(16 * config.probes, config.candidates)
    else:
        cells = min(config.cells, max(1, len(weight) // 39))  # FAISS needs 39 items per cell for training
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, cells, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = min(config.probes, cells)
        index.train(weight.numpy(force=True))
    for first in range(0, len(weight), _ROWS):
        index.add(weight[first : first + _ROWS].numpy(force=True))
    return index


def _recall(config: ExportConfig, state: SpanState, index: Any, items: int) -> dict[str, float | int | None]:
    """Recall over an evenly spaced sample of users with interests."""
    users = (state.store.counts > 0).nonzero().squeeze(1)
    users = users[torch.linspace(0, max(len(users) - 1, 0), min(len(users), config.index.sample)).long()]
    shares: list[float] = []
    for block in users.split(256):
        interests = state.store.gather(block)
        _, exact = state.ranker.best(interests, items, config.top)
        queries = state.ranker.scoring.queries(interests)
        for row, best in enumerate(exact):
            mine = Interests(queries.vectors[row : row + 1], queries.mask[row : row + 1])
            _, found = index.search(
                mine.vectors[mine.mask].numpy(force=True), min(max(config.index.candidates, config.top), items)
            )
            ids = torch.from_numpy(np.unique(found[found >= 0])).to(best.device)
            scores = score(mine, state.catalogue.flushed_weight()[ids], state.ranker.how)[0]
            taken = ids[scores.topk(min(config.top, len(ids))).indices]
            best = best[best >= 0]
            shares.append(torch.isin(best, taken).double().mean().item())
    return {f"recall@{config.top}": float(np.mean(shares)) if shares else None, "sampled_users": len(shares)}


def _lists(vectors: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])

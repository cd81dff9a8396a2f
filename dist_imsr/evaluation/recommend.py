"""The best items of users, with the interest that spoke for each: exact, over the whole sharded catalogue."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torchrec import JaggedTensor

from dist_imsr.checks import require, require_file
from dist_imsr.data.dataset import Dataset
from dist_imsr.data.history import History
from dist_imsr.distributed.topology import Topology
from dist_imsr.evaluation.finished import FinishedRun, SpanState
from dist_imsr.evaluation.parts import JointFile
from dist_imsr.evaluation.ranking import RankingConfig
from dist_imsr.model.interests import Interests

logger = logging.getLogger(__name__)
_NAMED = 10  # unknown users that an error lists


@dataclass
class RecommendConfig:
    """Writes each user's best items of the whole catalogue.

    Args:
        run_dir: of a run that exported spans (--training.export last or every).
        output: a Parquet file: user and item as the log knew them, score, rank from 1, interest (the slot of the user's
            interest with the largest dot product).
        users: ``all`` who have interests, or a file: Parquet, whose first column holds raw user ids, or text with one
            a line.
        data: where the run's prepared data stand, if elsewhere than when it was trained.
        span: the trained span whose state recommends; the last that was exported by default.
        top: N.
        exclude_seen: leave out what a user met up to that span.
        unknown: users of the file without interests, because the data do not know them or they came later: an error
            that lists them, or skipped with a count.
        block: users at a time, over all ranks.
        timeout_seconds: how long a rank may be waited for before the job ends.
        ranking: how the catalogue is ranked.
    """

    run_dir: Path
    output: Path
    users: str = "all"
    data: Path | None = None
    span: int | None = None
    top: int = 20
    exclude_seen: bool = False
    unknown: Literal["error", "skip"] = "error"
    block: int = 1024
    timeout_seconds: float = 1800.0
    ranking: RankingConfig = field(default_factory=RankingConfig)

    def __post_init__(self) -> None:
        require(self.top >= 1, "top", self.top, "at least 1")
        require(self.block >= 1, "block", self.block, "at least 1")
        require_file(self.output, "output")


def asked_users(config: RecommendConfig, dataset: Dataset) -> pa.Array | None:
    """Reads the users that are asked for.

    Args:
        config: where they stand.
        dataset: which type their ids have.

    Returns:
        ``[n]`` distinct raw ids in the file's order; None for all.

    Raises:
        ValueError: naming the file, if it cannot be read, is empty or holds no ids; listing users whom the data do not
            know, where they are not to be skipped.
    """
    if config.users == "all":
        return None
    path = Path(config.users)
    try:
        if path.suffix == ".parquet":
            raw = pq.read_table(path, columns=[pq.read_schema(path).names[0]]).column(0).combine_chunks()
        else:
            raw = pa.array([line for line in map(str.strip, path.read_text().splitlines()) if line], pa.string())
        raw = raw.cast(dataset.raw_id_type("users"))
    except (pa.ArrowException, OSError, UnicodeDecodeError, IndexError) as error:
        raise ValueError(f"users: {path} holds no list of user ids ({error}); name a file, or all") from error
    if not len(raw) or raw.null_count:
        raise ValueError(f"users: {path} holds {'empty' if raw.null_count else 'no'} user ids")
    raw = raw.unique()
    if config.unknown == "error":  # those whom the data know may still lack interests, which only the ranks can tell
        _refuse(raw, np.flatnonzero(dataset.dense_user_ids(raw) < 0))
    return raw


def recommend(config: RecommendConfig, run: FinishedRun, span: int, raw: pa.Array | None, topology: Topology) -> int:
    """Writes the output; collective.

    Args:
        config: what is asked for.
        run: which run.
        span: its state.
        raw: what `asked_users` gave.
        topology: this rank's place.

    Returns:
        How many users of the world have a list in it.

    Raises:
        ValueError: listing unknown users, where they are not to be skipped.
    """
    dataset, items = run.dataset, run.dataset.items_by_span[span]
    top = min(config.top, items)
    state = SpanState(run, span, items, topology, config.ranking)
    rows = _rows(config, dataset, state, raw, topology)
    buckets = topology.buckets(dataset.buckets)
    history = History(dataset, buckets, span) if config.exclude_seen else None
    most = int(topology.gather(torch.tensor([len(rows)], device=topology.device)).max())
    # Of each place: the item's embedding twice over, and a score and an id from every rank.
    place = 2 * 4 * run.model.dim + 12 * (topology.world_size + 1)
    affordable = max(1, (config.ranking.memory << 20) // (place * top))
    each = min(-(-config.block // topology.world_size), affordable)
    with JointFile(config.output, topology) as file:
        for first in range(0, max(most, 1), each):
            block = rows[first : first + each]
            interests = state.store.gather(block, topology.device)
            users = block + state.store.first_user
            seen = history(users) if history else None
            scores, ids = state.ranker.best(interests, items, top, seen)
            spoke = best_matching_interest(state, interests, ids)
            file.write(_table(dataset, users, scores, ids, spoke))
            if topology.rank == 0:
                logger.info("%d of %d users of this rank", min(first + each, len(rows)), len(rows))
    return int(topology.sum(torch.tensor([len(rows)])))


def _rows(
    config: RecommendConfig, dataset: Dataset, state: SpanState, raw: pa.Array | None, topology: Topology
) -> torch.Tensor:
    """The rows of this rank's users who are asked for and have interests, ``[n]`` int64 ascending."""
    store = state.store
    have = store.counts.cpu() > 0
    if raw is None:
        return have.nonzero().squeeze(1)
    dense = torch.from_numpy(dataset.dense_user_ids(raw))
    mine = (dense >= store.first_user) & (dense < store.first_user + len(have))
    rows = dense[mine] - store.first_user
    # Whoever no rank holds interests of is unknown: each rank says whom it knows.
    known = torch.zeros(len(dense), dtype=torch.int64)
    known[mine.nonzero().squeeze(1)[have[rows]]] = 1
    unknown = np.flatnonzero(topology.sum(known).numpy() == 0)
    if config.unknown == "error":
        _refuse(raw, unknown)
    elif len(unknown) and topology.rank == 0:
        logger.warning("skipped %d users of whom nothing is known: %s", len(unknown), _named(raw, unknown))
    return rows[have[rows]].sort().values


def _refuse(raw: pa.Array, unknown: np.ndarray) -> None:
    if len(unknown):
        named = _named(raw, unknown)
        raise ValueError(f"users: nothing is known of {named}: take them out, or pass --unknown skip")


def _named(raw: pa.Array, places: np.ndarray) -> str:
    more = f" and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
    return ", ".join(map(str, raw.take(pa.array(places[:_NAMED])).to_pylist())) + more


def best_matching_interest(state: SpanState, interests: Interests, ids: torch.Tensor) -> torch.Tensor:
    """The slot of the interest with the largest dot product for each item, ``[B, N]``; collective."""
    wanted = JaggedTensor(ids.clamp(min=0).flatten(), lengths=torch.full((len(ids),), ids.shape[1], device=ids.device))
    embeddings = state.catalogue.lookup(wanted)[0].view(*ids.shape, state.catalogue.dim)
    agreement = (interests.vectors @ embeddings.mT).masked_fill_(~interests.mask.unsqueeze(-1), -torch.inf)
    return agreement.argmax(1) if agreement.shape[1] else torch.zeros_like(ids)


def _table(
    dataset: Dataset, users: torch.Tensor, scores: torch.Tensor, ids: torch.Tensor, spoke: torch.Tensor
) -> pa.Table:
    real = (ids >= 0).numpy(force=True)
    place = np.broadcast_to(np.arange(1, ids.shape[1] + 1, dtype=np.int32), real.shape)
    owners = np.broadcast_to(users.numpy(force=True)[:, None], real.shape)
    return pa.table(
        {
            "user": dataset.raw_ids("users", owners[real]),
            "item": dataset.raw_ids("items", ids.numpy(force=True)[real]),
            "score": scores.numpy(force=True)[real],
            "rank": place[real],
            "interest": spoke.numpy(force=True)[real].astype(np.int32),
        }
    )

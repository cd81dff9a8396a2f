"""The best items of users over the whole sharded catalogue, each with its best matching interest."""

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torchrec import JaggedTensor

from dist_imsr.addresses import Location
from dist_imsr.checks import require, require_file
from dist_imsr.data.dataset import Dataset
from dist_imsr.data.history import History, active_users
from dist_imsr.data.user_ids import sort_keys
from dist_imsr.data.user_list import UserList, read_user_list
from dist_imsr.distributed.topology import Topology, connect
from dist_imsr.evaluation.finished import FinishedRun, SpanState
from dist_imsr.evaluation.parts import JointFile
from dist_imsr.evaluation.ranking import RankingConfig
from dist_imsr.evaluation.repeats import Repeats
from dist_imsr.evaluation.seen import SeenItems
from dist_imsr.model.interests import Interests

logger = logging.getLogger(__name__)
_NAMED = 10  # unknown users listed in an error
_PLAIN = re.compile(r"[^\s,]+( [^\s,]+)*")


@dataclass
class RecommendConfig:
    """Writes each user's best items of the whole catalogue.

    Args:
        run_dir: the folder of a run that exported spans (--training.export last or every).
        output: a Parquet file with user and item (raw ids), score, rank from 1, and interest (the slot of the user's
            interest with the largest dot product). The metadata of its schema name the span, the digest of the data up
            to it, and the strategy.
        users: ``all`` users with interests, or a file of raw user ids as they stand: Parquet or CSV (by name) with a
            column ``user``, else the first column counts; or UTF-8 text with one id per line. The first row of a CSV
            file is a header only if one of its cells is exactly ``user``.
        data: folder or address of the run's prepared data, if it was moved after training.
        span: the trained span whose model is used; the last exported one by default.
        since: only users whose interests or history changed after this span: those with interactions in a later one,
            up to ``span``; all users if the strategy trains new models. With a file of users, those of them.
        top: N.
        exclude_seen: leave out items that a user met up to that span; a user who has met almost all items gets fewer
            than N rows, or none. Retired spans are not left out.
        unknown: for users of the file without interests, because they are not in the data or came later: an error that
            lists them, or skip them and log their number.
        block: users per batch, over all ranks.
        timeout_seconds: the longest wait for a rank before the job ends.
        ranking: how the catalogue is ranked.
    """

    run_dir: Path
    output: Path
    users: str = "all"
    data: Location | None = None
    span: int | None = None
    since: int | None = None
    top: int = 20
    exclude_seen: bool = False
    unknown: Literal["error", "skip"] = "error"
    block: int = 1024
    timeout_seconds: float = 1800.0
    ranking: RankingConfig = field(default_factory=RankingConfig)

    def __post_init__(self) -> None:
        require(self.since is None or self.since >= 0, "since", self.since, "at least 0")
        require(self.top >= 1, "top", self.top, "at least 1")
        require(self.block >= 1, "block", self.block, "at least 1")
        require_file(self.output, "output")


class Recommended(NamedTuple):
    """What a list of recommendations holds, over all ranks.

    Args:
        users: number of users with at least one row.
        fewer: number of these with fewer rows than ``top``.
        none: number of requested users without a row, since they have met all items.
        span: the trained span whose model was used.
        items: number of items known by its end.
    """

    users: int
    fewer: int
    none: int
    span: int
    items: int

    def describe(self, config: "RecommendConfig") -> str:
        """The line for the end of the command, e.g. ``8 users, span 1: written to recs.parquet``."""
        line = f"{self.users} users, span {self.span}: written to {config.output}"
        if config.since is not None and not self.users + self.none:
            return f"{line}; {'nobody' if config.users == 'all' else 'none of them'} changed after span {config.since}"
        counts = []
        if self.fewer:
            counts.append(f"{self.fewer} have fewer than {config.top} items")
        if self.none:
            counts.append(f"{self.none} more {'has' if self.none == 1 else 'have'} none")
        if not counts:
            return line
        reasons = [f"the span knows {self.items} items"] if self.items < config.top else []
        if config.exclude_seen:
            reasons.append("they have met the others")
        return f"{line}; {', '.join(counts)}: {', and '.join(reasons)}"


def requested_users(config: RecommendConfig, dataset: Dataset) -> UserList | None:
    """Reads the file ``config.users``.

    Returns:
        The distinct users in the file's order; None for all users.

    Raises:
        ValueError: naming the file, if it cannot be read or has no or empty ids; listing the users that are not in the
            data set, unless they are skipped.
    """
    if config.users == "all":
        return None
    requested = read_user_list(Path(config.users), dataset)
    if config.unknown == "error":  # users of the data set without interests are found in `recommend`
        _refuse(requested, np.flatnonzero(dataset.user_ids(requested.ids) < 0))
    return requested


def check_rows(config: RecommendConfig, dataset: Dataset, span: int) -> None:
    """Refuses a ``since`` that is no earlier span, or after which spans were retired.

    Args:
        config: the run and its options.
        dataset: its data.
        span: the exported span.

    Raises:
        ValueError: with what to do.
    """
    if config.since is None:
        return
    require(config.since <= span, "since", config.since, f"at most {span}, the exported span")
    if config.since + 1 < dataset.first_kept and config.since < span:
        raise ValueError(
            f"since: who changed after span {config.since} is not known, as {dataset.retired_rows}: name a later span, "
            "or leave it out for all users"
        )


def write_recommendations(config: RecommendConfig) -> Recommended:
    """Writes the output of a run's newest exported span, or of the one that is named; every rank calls it.

    Args:
        config: the run, the users and the output.

    Returns:
        What was written.

    Raises:
        ValueError: naming the key, the file or the users.
    """
    run = FinishedRun(config.run_dir, config.data)
    span = run.resolve_span(config.span)
    check_rows(config, run.dataset, span)
    users = requested_users(config, run.dataset)
    return recommend(config, run, span, users, connect(config.timeout_seconds))


def recommend(
    config: RecommendConfig, run: FinishedRun, span: int, requested: UserList | None, topology: Topology
) -> Recommended:
    """Writes the output; collective.

    Args:
        config: the output and its options.
        run: the run.
        span: an exported span.
        requested: the result of `requested_users`.
        topology: ranks and devices.

    Returns:
        What was written, over all ranks.

    Raises:
        ValueError: listing unknown users, unless they are skipped.
    """
    dataset, items = run.dataset, run.dataset.items_by_span[span]
    top = min(config.top, items)
    state = SpanState(run, span, items, topology, config.ranking)
    rows = _rows(config, dataset, state, requested, topology)
    buckets = topology.buckets(dataset.buckets)
    first = dataset.first_kept
    repeats = state.origin.repeats if not config.exclude_seen else Repeats()
    needed = config.exclude_seen or repeats.weight > 0
    history = History(dataset, buckets, span, first) if needed else None
    if history is not None and first and topology.rank == 0:
        kind = "left out" if config.exclude_seen else "counted as repeats"
        logger.warning("items that users met before span %d are not %s: these spans are retired", first, kind)
    most = int(topology.gather(torch.tensor([len(rows)], device=topology.device)).max())
    # Per place of a list: the item's embedding twice, and a score and an id from every rank.
    bytes_per_place = 2 * 4 * run.model.row_width + 12 * (topology.world_size + 1)
    max_users = max(1, (config.ranking.memory << 20) // (bytes_per_place * top))
    size = min(-(-config.block // topology.world_size), max_users)
    counts = torch.zeros(3, dtype=torch.int64)  # users with rows, those with fewer than top, users without any
    with JointFile(config.output, topology) as file:
        for first in range(0, max(most, 1), size):
            block = rows[first : first + size]
            interests = state.store.gather(block, topology.device)
            users = state.store.owned.users(block)
            met, seen = None, None
            if history is not None:
                past = history(users)
                met = past.jagged(topology.device)
                if repeats.weight:
                    [embeddings] = state.catalogue.lookup(met)
                    seen = SeenItems(met, embeddings, repeats.bonus(past, topology.device))
            scores, ids = state.ranker.best(interests, items, top, met, seen)
            matching = best_matching_interest(state, interests, ids)
            table = _table(dataset, users, scores, ids, matching)
            file.write(table.replace_schema_metadata(state.origin.metadata))
            listed = (ids >= 0).sum(1).cpu()
            some = listed > 0
            counts += torch.stack([some.sum(), (some & (listed < config.top)).sum(), (~some).sum()])
            if topology.rank == 0:
                logger.info("%d of %d users of this rank", min(first + size, len(rows)), len(rows))
    with_rows, fewer, none = topology.sum(counts).tolist()
    return Recommended(users=with_rows, fewer=fewer, none=none, span=span, items=items)


def _rows(
    config: RecommendConfig, dataset: Dataset, state: SpanState, requested: UserList | None, topology: Topology
) -> torch.Tensor:
    """Rows of this rank's requested users with interests, ``[n]`` int64, in an order that is the same for all ranks."""
    store = state.store
    has_interests = store.counts.cpu() > 0
    if requested is None:
        rows = has_interests.nonzero().squeeze(1)
    else:
        users = dataset.user_ids(requested.ids)
        mine = np.flatnonzero((users >= 0) & dataset.known(users, state.span) & store.owned.owns(users))
        rows = torch.from_numpy(store.owned.rows(users[mine]))
        # A user without interests on any rank is unknown.
        known = torch.zeros(len(users), dtype=torch.int64)
        known[torch.from_numpy(mine)[has_interests[rows]]] = 1
        unknown = np.flatnonzero(topology.sum(known).numpy() == 0)
        if config.unknown == "error":
            _refuse(requested, unknown)
        elif len(unknown) and topology.rank == 0:
            logger.warning("skipped %d unknown users: %s", len(unknown), _named(requested, unknown))
        rows = rows[has_interests[rows]]
    if config.since is not None and not state.origin.writes_all_users:
        changed = active_users(dataset, store.owned.buckets, range(config.since + 1, state.span + 1))
        rows = rows[torch.from_numpy(np.isin(store.owned.users(rows).numpy(), changed))]
    return rows[sort_keys(store.owned.users(rows), dataset.buckets).argsort()]


def _refuse(requested: UserList, unknown: np.ndarray) -> None:
    if len(unknown):
        named = _named(requested, unknown)
        raise ValueError(f"users: unknown users {named}: take them out, or pass --unknown skip")


def _named(requested: UserList, places: np.ndarray) -> str:
    """Some ids, in quotes where blanks or commas would mislead."""
    first = map(str, requested.names.take(pa.array(places[:_NAMED])).to_pylist())
    more = f" and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
    return ", ".join(one if _PLAIN.fullmatch(one) else repr(one) for one in first) + more


def best_matching_interest(state: SpanState, interests: Interests, ids: torch.Tensor) -> torch.Tensor:
    """The slot of the interest with the largest dot product for each item, ``[B, N]``; collective."""
    wanted = JaggedTensor(ids.clamp(min=0).flatten(), lengths=torch.full((len(ids),), ids.shape[1], device=ids.device))
    embeddings = state.catalogue.lookup(wanted)[0].view(*ids.shape, state.catalogue.width)
    queries = state.ranker.scoring.queries(interests)
    agreement = (queries.vectors @ embeddings.mT).masked_fill_(~interests.mask.unsqueeze(-1), -torch.inf)
    return agreement.argmax(1) if agreement.shape[1] else torch.zeros_like(ids)


def _table(
    dataset: Dataset, users: torch.Tensor, scores: torch.Tensor, ids: torch.Tensor, matching: torch.Tensor
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
            "interest": matching.numpy(force=True)[real].astype(np.int32),
        }
    )

"""Generates interactions with planted truth: which clusters of items each user is interested in, and since which span.

Items form clusters; inside a cluster they have Zipf popularity and styles. A user starts with K_0 clusters, drifts from
style to style inside each of them, and takes on a new cluster now and then, at the beginning of a span; new items and
clusters appear over the spans as well. Everything is a pure function of the options, drawn for one chunk of users at a
time, so that data of any size can be streamed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa

from dist_imsr.checks import require
from dist_imsr.data.cutting import share_edges
from dist_imsr.data.schedule import generator
from dist_imsr.data.source_query import SourceQuery

_CATALOGUE, _INTERESTS, _EVENTS = 4, 5, 6  # streams of random numbers
_PERIOD = (1_500_000_000, 1_520_000_000)  # the first and last unix second
_CHUNK = 1024  # users


@dataclass(kw_only=True)
class DriftConfig:
    """Planted drift, for the source drift.

    Args:
        users: the number of users.
        items: the number of items; items without interactions get no id.
        clusters: the number of clusters of items, all of the same size.
        styles: the number of parts of a cluster, between which an interest drifts.
        interests: K_0, the number of clusters that a user starts with.
        interactions: the expected number in each span, from the pre-training span on; the last number applies to all
            later spans.
        growth: the probability that a user takes on a new cluster in a span after the first.
        evenness: the shape of the Gamma distribution, with mean 1, of the weights of a user's interests.
        debut: the factor of a new cluster's weight in its first span.
        drift: the probability that an interest moves to the next style in a span after the first.
        focus: the share of an interest's interactions that are in its style.
        fresh: the share of items, and of clusters, that appear in a span after the first.
        noise: the share of interactions with items of any cluster.
        item_zipf: the exponent of items' popularity inside a cluster.
        cluster_zipf: the exponent of clusters' popularity.
        activity: the standard deviation of the logarithm of users' activity.
        seed: of every random number.
    """

    users: int = 20_000
    items: int = 50_000
    clusters: int = 200
    styles: int = 5
    interests: int = 4
    interactions: list[int] = field(default_factory=lambda: [800_000, 300_000])
    growth: float = 0.3
    evenness: float = 4.0
    debut: float = 2.0
    drift: float = 0.1
    focus: float = 0.6
    fresh: float = 0.2
    noise: float = 0.05
    item_zipf: float = 0.8
    cluster_zipf: float = 0.4
    activity: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("users", "clusters", "styles", "interests"):
            require(getattr(self, name) >= 1, f"drift.{name}", getattr(self, name), "at least 1")
        require(self.evenness > 0, "drift.evenness", self.evenness, "above 0")
        require(self.items >= self.clusters, "drift.items", self.items, "at least drift.clusters")
        counts = self.interactions
        require(bool(counts) and min(counts) >= 1, "drift.interactions", counts, "numbers of at least 1")
        for name in ("growth", "drift", "focus", "fresh", "noise"):
            require(0 <= getattr(self, name) <= 1, f"drift.{name}", getattr(self, name), "0 to 1")
        for name in ("debut", "item_zipf", "cluster_zipf", "activity", "seed"):
            require(getattr(self, name) >= 0, f"drift.{name}", getattr(self, name), "at least 0")


class PlantedInterests(NamedTuple):
    """The planted interests of a chunk of U users, padded to M interests each.

    Args:
        clusters: ``[U, M]`` int64.
        birth_span: ``[U, M]`` int64, the first span in which the user has the interest; T + 1 for padding.
        styles: ``[T + 1, U, M]`` int64, the interest's style in each span.
        weights: ``[U, M]`` float64, proportional to the interest's share of the user's interactions.
    """

    clusters: np.ndarray
    birth_span: np.ndarray
    styles: np.ndarray
    weights: np.ndarray


class PlantedDrift:
    """Generates interactions and their truth.

    Args:
        config: the options.
        alpha: the part of the time that is the pre-training span.
        spans: T, the number of equal spans of the rest.

    Raises:
        ValueError: if there are fewer clusters than interests that a user may get.
    """

    def __init__(self, config: DriftConfig, alpha: float, spans: int) -> None:
        self.config, self.spans = config, spans + 1
        self.edges = share_edges(_PERIOD[0], _PERIOD[1], alpha, spans)
        self.edges[-1] = _PERIOD[1]  # nothing happens in the period's last second
        draw = generator(_CATALOGUE, config.seed)
        self.clusters = np.arange(config.items) * config.clusters // config.items  # of each item; popular items first
        later = (draw.random(config.clusters) < config.fresh) * draw.integers(1, self.spans, config.clusters)
        self.cluster_birth_span = draw.permutation(np.sort(later))
        need = config.interests + (spans if config.growth else 0)
        require(
            (self.cluster_birth_span == 0).sum() >= need,
            "drift.clusters",
            config.clusters,
            f"enough for {need} in span 0",
        )
        rank = draw.permutation(config.clusters) + 1
        self._popularity = -config.cluster_zipf * np.log(rank)
        item_birth_span = (draw.random(config.items) < config.fresh) * draw.integers(1, self.spans, config.items)
        item_birth_span[np.flatnonzero(np.diff(self.clusters, prepend=-1))] = 0  # so that no cluster is ever empty
        self.item_birth_span = np.maximum(item_birth_span, self.cluster_birth_span[self.clusters])

    @property
    def chunks(self) -> int:
        """The number of chunks of users."""
        return -(-self.config.users // _CHUNK)

    def interests(self, chunk: int) -> PlantedInterests:
        """The interests of a chunk of users."""
        config, draw = self.config, generator(_INTERESTS, self.config.seed, chunk)
        users, most = len(self._users(chunk)), config.interests + self.spans - 1
        # Gumbel-max trick: the largest of log popularity + Gumbel noise is a draw by popularity, without replacement.
        scores = self._popularity + draw.gumbel(size=(users, config.clusters))
        clusters = np.zeros((users, most), np.int64)
        birth_span = np.full((users, most), self.spans)
        grows = draw.random((users, self.spans)) < config.growth
        for slot in range(most):
            span = max(0, slot - config.interests + 1)
            available = np.where(self.cluster_birth_span <= span, scores, -np.inf)
            clusters[:, slot] = available.argmax(1)
            has = grows[:, span] if span else np.full(users, True)
            birth_span[has, slot] = span
            scores[np.flatnonzero(has), clusters[has, slot]] = -np.inf
        first = draw.integers(config.styles, size=(1, users, most))
        moves = draw.random((self.spans - 1, users, most)) < config.drift
        styles = np.concatenate([first, first + moves.cumsum(0)]) % config.styles
        return PlantedInterests(
            clusters, birth_span, styles, draw.gamma(config.evenness, 1 / config.evenness, (users, most))
        )

    def events(self, chunk: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Draws the interactions of a chunk of users.

        Yields:
            Users, items and unix seconds of each span's interactions, ``[n]`` int64 each.
        """
        config, draw = self.config, generator(_EVENTS, self.config.seed, chunk)
        users, truth = self._users(chunk), self.interests(chunk)
        activity = np.exp(config.activity * draw.normal(size=len(users)) - config.activity**2 / 2)
        for span in range(self.spans):
            expected = config.interactions[min(span, len(config.interactions) - 1)] / config.users
            who = np.arange(len(users)).repeat(draw.poisson(expected * activity))
            debut = np.where((truth.birth_span == span) & (span > 0), config.debut, 1.0)
            share = (truth.weights * debut * (truth.birth_span <= span)).cumsum(1)
            slot = (share[who] <= (draw.random(len(who)) * share[who, -1])[:, None]).sum(1)
            items = self._items(span, truth.clusters[who, slot], truth.styles[span, who, slot], draw)
            times = draw.integers(self.edges[span], self.edges[span + 1], len(who))
            yield users[who], items, times

    def _items(self, span: int, clusters: np.ndarray, styles: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """Draws an item for each cluster and style, by popularity rank among the items that exist in the span."""
        config = self.config
        available = np.flatnonzero(self.item_birth_span <= span)
        sizes = np.bincount(self.clusters[available], minlength=config.clusters)
        first, size = (sizes.cumsum() - sizes)[clusters], sizes[clusters]
        # The inverse distribution function of a continuous power law, rounded down to ranks.
        power, chance = 1 - config.item_zipf, draw.random(len(clusters))
        if power:
            place = (1 + chance * ((size + 1.0) ** power - 1)) ** (1 / power) - 1
        else:
            place = (size + 1.0) ** chance - 1
        rank = np.minimum(place.astype(np.int64), size - 1)
        styled = rank - rank % config.styles + styles
        keeps = (draw.random(len(rank)) < config.focus) & (styled < size)
        items = available[first + np.where(keeps, styled, rank)]
        strays = draw.random(len(rank)) < config.noise
        return np.where(strays, available[draw.integers(len(available), size=len(rank))], items)

    def _users(self, chunk: int) -> np.ndarray:
        return np.arange(chunk * _CHUNK, min((chunk + 1) * _CHUNK, self.config.users))


def drift_query(drift: PlantedDrift, connection: duckdb.DuckDBPyConnection) -> SourceQuery:
    """A query for planted drift, with its truth: ``users`` (user, cluster, span) and ``items`` (item, cluster).

    Args:
        drift: the generator.
        connection: the streams of rows are registered with it.

    Returns:
        A query with BIGINT ids, which rejects no row.
    """

    def events() -> Iterator[pa.RecordBatch]:
        for chunk in range(drift.chunks):
            for columns in drift.events(chunk):
                yield pa.record_batch([pa.array(column, pa.int64()) for column in columns], ["user", "item", "time"])

    def interests() -> Iterator[pa.RecordBatch]:
        for chunk in range(drift.chunks):
            truth = drift.interests(chunk)
            who, slot = (truth.birth_span < drift.spans).nonzero()
            columns = (chunk * _CHUNK + who, truth.clusters[who, slot], truth.birth_span[who, slot])
            yield pa.record_batch([pa.array(column, pa.int64()) for column in columns], ["raw", "cluster", "span"])

    items = {"raw": np.arange(drift.config.items), "cluster": drift.clusters}
    connection.register("drift_events", _reader(["user", "item", "time"], events()))
    connection.register("drift_users", _reader(["raw", "cluster", "span"], interests()))
    connection.register("drift_items", pa.table(items))
    return SourceQuery(
        "SELECT *, 0 AS nanos, 0 AS breaks, NULL::VARCHAR AS reason, NULL::VARCHAR AS raw FROM drift_events",
        period=(int(drift.edges[0]), int(drift.edges[-1])),
        truth={"users": "drift_users", "items": "drift_items"},
    )


def _reader(names: list[str], batches: Iterator[pa.RecordBatch]) -> pa.RecordBatchReader:
    return pa.RecordBatchReader.from_batches(pa.schema([(name, pa.int64()) for name in names]), batches)

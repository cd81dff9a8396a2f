"""Interactions with planted truth: who is interested in which cluster of items, and since when.

Items form clusters; inside a cluster they have Zipf popularity and styles. A user begins with K_0 clusters, drifts from
style to style inside each of them, and takes on a new cluster now and then, at the beginning of a span; items and
clusters appear over the spans as well. Everything is a pure function of the options, drawn a chunk of users at a time,
so that any size streams.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa

from dist_imsr.checks import require
from dist_imsr.data.rows import Rows, span_edges
from dist_imsr.data.schedule import generator

_CATALOGUE, _INTERESTS, _EVENTS = 4, 5, 6  # streams of random numbers
_PERIOD = (1_500_000_000, 1_520_000_000)  # unix seconds that the interactions cover
_CHUNK = 1024  # users


@dataclass(kw_only=True)
class DriftConfig:
    """Planted drift, for the source drift.

    Args:
        users: how many.
        items: how many; those that nobody meets get no id.
        clusters: of items, equally large.
        styles: parts of a cluster between which an interest drifts.
        interests: K_0, the clusters that a user begins with.
        interactions: the expected number in each span, from the pre-training one on; the last number counts for all
            later spans.
        growth: the probability that a user takes on a new cluster in a later span.
        evenness: of a user's interests' weights, which are Gamma distributed with this shape and the mean 1.
        debut: what a new cluster's weight is multiplied by in its first span.
        drift: the probability that an interest moves to the next style in a later span.
        focus: the share of an interest's interactions that keep to its style.
        fresh: the share of items, and of clusters, that appear in a later span.
        noise: the share of interactions with any item.
        item_zipf: the exponent of items' popularity inside a cluster.
        cluster_zipf: the exponent of clusters' popularity.
        activity: the deviation of the logarithm of users' activity.
        seed: keys every random number.
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
    """The planted interests of a chunk of U users, each with room for M of them.

    Args:
        clusters: ``[U, M]`` int64.
        born: ``[U, M]`` int64, the span from which on a user has the interest; beyond the last span for none.
        styles: ``[T + 1, U, M]`` int64, its style in each span.
        weights: ``[U, M]`` float64, its share of the user's interactions, up to a factor.
    """

    clusters: np.ndarray
    born: np.ndarray
    styles: np.ndarray
    weights: np.ndarray


class PlantedDrift:
    """The generator.

    Args:
        config: the drift's section.
        alpha: the part of the time that is the pre-training span.
        spans: T, the number of equal spans of the rest.

    Raises:
        ValueError: if there are too few clusters for the interests that a user may get.
    """

    def __init__(self, config: DriftConfig, alpha: float, spans: int) -> None:
        self.config, self.spans = config, spans + 1
        self.edges = span_edges(_PERIOD, alpha, spans)
        draw = generator(_CATALOGUE, config.seed)
        self.clusters = np.arange(config.items) * config.clusters // config.items  # of each item; popular items first
        later = (draw.random(config.clusters) < config.fresh) * draw.integers(1, self.spans, config.clusters)
        self.cluster_born = draw.permutation(np.sort(later))
        need = config.interests + (spans if config.growth else 0)
        require(
            (self.cluster_born == 0).sum() >= need, "drift.clusters", config.clusters, f"enough for {need} in span 0"
        )
        rank = draw.permutation(config.clusters) + 1
        self._popularity = -config.cluster_zipf * np.log(rank)
        item_born = (draw.random(config.items) < config.fresh) * draw.integers(1, self.spans, config.items)
        item_born[np.flatnonzero(np.diff(self.clusters, prepend=-1))] = 0  # no cluster is ever empty
        self.item_born = np.maximum(item_born, self.cluster_born[self.clusters])

    @property
    def chunks(self) -> int:
        """How many chunks of users there are."""
        return -(-self.config.users // _CHUNK)

    def interests(self, chunk: int) -> PlantedInterests:
        """What a chunk of users is interested in.

        Args:
            chunk: which one.

        Returns:
            The truth.
        """
        config, draw = self.config, generator(_INTERESTS, self.config.seed, chunk)
        users, most = len(self._users(chunk)), config.interests + self.spans - 1
        # Gumbel's trick: the largest of log popularity + Gumbel noise is a draw by popularity, without replacement.
        wish = self._popularity + draw.gumbel(size=(users, config.clusters))
        clusters = np.zeros((users, most), np.int64)
        born = np.full((users, most), self.spans)
        grows = draw.random((users, self.spans)) < config.growth
        for slot in range(most):
            span = max(0, slot - config.interests + 1)
            there = np.where(self.cluster_born <= span, wish, -np.inf)
            clusters[:, slot] = there.argmax(1)
            has = grows[:, span] if span else np.full(users, True)
            born[has, slot] = span
            wish[np.flatnonzero(has), clusters[has, slot]] = -np.inf
        first = draw.integers(config.styles, size=(1, users, most))
        moves = draw.random((self.spans - 1, users, most)) < config.drift
        styles = np.concatenate([first, first + moves.cumsum(0)]) % config.styles
        return PlantedInterests(clusters, born, styles, draw.gamma(config.evenness, 1 / config.evenness, (users, most)))

    def events(self, chunk: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """What a chunk of users does, span after span.

        Args:
            chunk: which one.

        Yields:
            Users, items and unix seconds of a span's interactions, ``[n]`` int64 each.
        """
        config, draw = self.config, generator(_EVENTS, self.config.seed, chunk)
        users, truth = self._users(chunk), self.interests(chunk)
        activity = np.exp(config.activity * draw.normal(size=len(users)) - config.activity**2 / 2)
        for span in range(self.spans):
            expected = config.interactions[min(span, len(config.interactions) - 1)] / config.users
            who = np.arange(len(users)).repeat(draw.poisson(expected * activity))
            debut = np.where((truth.born == span) & (span > 0), config.debut, 1.0)
            share = (truth.weights * debut * (truth.born <= span)).cumsum(1)
            slot = (share[who] <= (draw.random(len(who)) * share[who, -1])[:, None]).sum(1)
            items = self._items(span, truth.clusters[who, slot], truth.styles[span, who, slot], draw)
            times = draw.integers(self.edges[span], self.edges[span + 1], len(who))
            yield users[who], items, times

    def _items(self, span: int, clusters: np.ndarray, styles: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """Draws an item for each cluster and style: by rank among the items that are there already."""
        config = self.config
        there = np.flatnonzero(self.item_born <= span)
        sizes = np.bincount(self.clusters[there], minlength=config.clusters)
        first, size = (sizes.cumsum() - sizes)[clusters], sizes[clusters]
        # The continuous power law's inverse, cut down to whole ranks.
        power, chance = 1 - config.item_zipf, draw.random(len(clusters))
        if power:
            place = (1 + chance * ((size + 1.0) ** power - 1)) ** (1 / power) - 1
        else:
            place = (size + 1.0) ** chance - 1
        rank = np.minimum(place.astype(np.int64), size - 1)
        styled = rank - rank % config.styles + styles
        keeps = (draw.random(len(rank)) < config.focus) & (styled < size)
        items = there[first + np.where(keeps, styled, rank)]
        strays = draw.random(len(rank)) < config.noise
        return np.where(strays, there[draw.integers(len(there), size=len(rank))], items)

    def _users(self, chunk: int) -> np.ndarray:
        return np.arange(chunk * _CHUNK, min((chunk + 1) * _CHUNK, self.config.users))


def planted(drift: PlantedDrift, connection: duckdb.DuckDBPyConnection) -> Rows:
    """Planted drift as rows, with its truth: ``users`` (user, cluster, span) and ``items`` (item, cluster).

    Args:
        drift: the generator.
        connection: where its streams are registered.

    Returns:
        Rows with BIGINT ids, none of which is rejected.
    """

    def events() -> Iterator[pa.RecordBatch]:
        for chunk in range(drift.chunks):
            for columns in drift.events(chunk):
                yield pa.record_batch([pa.array(column, pa.int64()) for column in columns], ["user", "item", "time"])

    def interests() -> Iterator[pa.RecordBatch]:
        for chunk in range(drift.chunks):
            truth = drift.interests(chunk)
            who, slot = (truth.born < drift.spans).nonzero()
            columns = (chunk * _CHUNK + who, truth.clusters[who, slot], truth.born[who, slot])
            yield pa.record_batch([pa.array(column, pa.int64()) for column in columns], ["raw", "cluster", "span"])

    whole = {"raw": np.arange(drift.config.items), "cluster": drift.clusters}
    connection.register("drift_events", _reader(["user", "item", "time"], events()))
    connection.register("drift_users", _reader(["raw", "cluster", "span"], interests()))
    connection.register("drift_items", pa.table(whole))
    return Rows(
        "SELECT *, NULL::VARCHAR AS reason, NULL::VARCHAR AS raw FROM drift_events",
        period=(int(drift.edges[0]), int(drift.edges[-1])),
        truth={"users": "drift_users", "items": "drift_items"},
    )


def _reader(names: list[str], batches: Iterator[pa.RecordBatch]) -> pa.RecordBatchReader:
    return pa.RecordBatchReader.from_batches(pa.schema([(name, pa.int64()) for name in names]), batches)

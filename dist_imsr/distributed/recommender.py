"""The distributed model: sharded catalogue, replicated extractor, bucket-local interests."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dist_imsr import devices
from dist_imsr.data.batch import Batch
from dist_imsr.data.jagged import longest, pad
from dist_imsr.distributed import keyed_random
from dist_imsr.distributed.catalogue import Catalogue, CatalogueConfig
from dist_imsr.distributed.engine import DenseEngine, EngineConfig
from dist_imsr.distributed.interest_store import InterestStore, InterestStoreConfig, StoreSnapshot, View
from dist_imsr.distributed.objective import Extraction, NextItem, Objective, score_batch
from dist_imsr.distributed.rows import ShardRows
from dist_imsr.distributed.slots import Layout
from dist_imsr.distributed.topology import Topology
from dist_imsr.model.extractors import ModelConfig, build_extractor
from dist_imsr.model.interests import Interests, Start
from dist_imsr.model.scoring import sampled_softmax
from dist_imsr.phases import Phase

_LOGITS = 0x106175  # a stream of random numbers

Embed = Callable[..., list[torch.Tensor]]
Forward = Callable[[torch.Tensor, torch.Tensor, Start], Interests]


class Snapshot(NamedTuple):
    """For `Recommender.restore`: copies of the trained tensors in host memory, and the store's snapshot."""

    tensors: dict[str, ShardRows]
    store: StoreSnapshot
    updates: int  # number of updates of the table, for Adam's bias correction


class Recommender:
    """One rank's part of the model; `extract`, `train_step` and growth are collective.

    Args:
        model: the base model's section.
        catalogue: the catalogue's section.
        store: the interest store's section.
        engine: the engine's section.
        items: the number of items known by the end of each span so far.
        n_buckets: the number of buckets of users in the data set.
        users_per_bucket: the number of users of each bucket who have a row in the store.
        seed: keys all random initial values.
        topology: this rank's place.
        events: a folder for TensorBoard's event files; none without it.
        capacity: number of table rows over all ranks, as in the checkpoint to load; by default that of a table that
            grew from one number of ``items`` to the next.
        alongside: as in `Catalogue`, like ``copies``.
    """

    def __init__(
        self,
        *,
        model: ModelConfig,
        catalogue: CatalogueConfig,
        store: InterestStoreConfig,
        engine: EngineConfig,
        items: Sequence[int],
        n_buckets: int,
        users_per_bucket: int,
        seed: int,
        topology: Topology,
        events: Path | None = None,
        capacity: int | None = None,
        alongside: int = 0,
        copies: int = 0,
    ) -> None:
        self.config, self.seed, self.topology = model, seed, topology
        self.scoring = model.scoring
        self.extractor = build_extractor(model)
        self.engine = DenseEngine(self.extractor, engine, topology.device, events)  # refuses settings before all else
        self.catalogue = Catalogue(
            catalogue,
            items,
            model.dim,
            seed,
            topology,
            capacity,
            model.row_width - model.dim,
            alongside=alongside,
            copies=copies,
        )
        self.store = InterestStore.build(
            store,
            n_buckets,
            users_per_bucket,
            model.dim,
            self.extractor.query_dim,
            seed,
            topology,
            self.extractor.state_dim,
        )
        self._prefetched: tuple[Batch, View] | None = None

    @Phase("growing")
    def grow(self, items: int, users_per_bucket: int) -> None:
        """Extends the table and the store, between spans, to at least so many items and users; collective."""
        self.catalogue.grow(items)
        self.store.grow(users_per_bucket)

    def has_interests(self, users: np.ndarray) -> np.ndarray:
        """Whether users have interests: ``[n]`` bool for ``[n]`` ids of this rank."""
        return (self.store.counts[self.store.owned.rows(users)] > 0).numpy(force=True)

    @Phase("admitting")
    def admit(self, users: np.ndarray, span: int, counts: np.ndarray | None = None) -> None:
        """Creates the first interests of new users (Algorithm 2, lines 2-6); other users keep theirs.

        Args:
            users: ``[n]`` ids of this rank.
            span: the current span.
            counts: ``[n]``, the number for each user; ``model.interests`` by default, and where it is 0.
        """
        new, default = ~self.has_interests(users), self.config.interests
        counts = np.full(len(users), default) if counts is None else np.where(counts > 0, counts, default)
        self.store.expand(torch.from_numpy(self.store.owned.rows(users[new])), torch.from_numpy(counts[new]), span)

    def set_learning_rates(self, pretraining: bool) -> None:
        """Changes the learning rates of the catalogue and of the dense weights.

        Args:
            pretraining: whether the parameters are new, as in the first span and under full retraining.
        """
        for part in (self.catalogue, self.engine):
            config = part.config
            part.set_learning_rate(config.learning_rate if pretraining else config.incremental_learning_rate)

    def extract(
        self,
        batch: Batch,
        *,
        training: bool = False,
        rho: float = 0.0,
        embed: Embed | None = None,
        forward: Forward | None = None,
    ) -> Extraction:
        """Extracts the interests of a batch's users from its history (Eq. 1).

        Args:
            batch: on this rank's device.
            training: whether the users' queries require a gradient.
            rho: the number of items that an existing interest's stored vector counts as (erratum E10).
            embed: looks up the embeddings of sequences; `Catalogue.lookup` by default.
            forward: the extractor's forward pass; that of the engine by default.

        Returns:
            The interests, with their inputs.
        """
        history, targets, negatives = (embed or self.catalogue.lookup)(batch.history, batch.targets, batch.negatives)
        layout = self.store.layout(batch.host.users, batch.span)
        padded, mask = pad(history[:, : self.config.dim], batch.history, longest(batch.host.history))
        interests, existing, states = self._view(batch)
        start = Start(
            interests,
            carried=rho * existing if rho else None,
            logits=self._logits(batch.users, interests.mask.shape[1], padded.shape[1]),
            queries=self._queries(batch, layout) if self.extractor.query_dim else None,
            states=states if self.extractor.state_dim else None,
        )
        if training and start.queries is not None:
            start.queries.requires_grad_()
        with Phase("routing"):
            extracted = (forward or self.engine)(padded, mask, start)
        return Extraction(extracted, start, existing, targets, negatives, layout)

    def train_step(
        self,
        batch: Batch,
        following: Batch | None = None,
        *,
        objective: Objective | None = None,
        prefetch_lookup: bool = True,
    ) -> torch.Tensor:
        """One step of training, with one update of all parameters; collective.

        Args:
            batch: on this rank's device.
            following: the batch of the next step, whose inputs are prefetched as far as no parameter affects them.
            objective: defines interests and losses; `NextItem` by default.
            prefetch_lookup: whether to request the rows of ``following``; false if ``extract`` looks up others.

        Returns:
            This rank's loss of Eq. 6 and its extra loss, ``[2]`` float64: sums over its targets.
        """
        objective = objective or NextItem()
        extraction = objective.extract(self, batch, training=True)
        if following is not None and prefetch_lookup:
            self.catalogue.start_lookup(following.history, following.targets, following.negatives)
        with Phase("loss"), self.engine.matmul_precision():
            queries = self.scoring.queries(extraction.interests)
            scores = score_batch(batch, queries, extraction.targets, extraction.negatives)
            extra = objective.extra_loss(self, batch, extraction, scores)
            next_item = sampled_softmax(scores.candidates)
            losses = torch.stack((next_item, next_item.new_zeros(()) if extra is None else extra))
        if following is not None:  # the device computes while the host waits for the other ranks' numbers of ids
            self.catalogue.send_ids()
            self._prefetch_interests(following)
        # The base model's own regularisation is not reported, so that losses are comparable between base models.
        loss = losses.sum() + self.extractor.regularisation(extraction.interests)
        # DeepSpeed and TorchRec divide gradients by the world size; for the users' queries this is done below.
        self.engine.update(loss * (self.topology.world_size / max(batch.world_targets, 1)))
        own = extraction.start.queries
        if own is not None and own.grad is not None:
            self.store.update_queries(batch.host.users, own.grad / self.topology.world_size, batch.span)
        return losses.detach().double()

    @Phase("snapshot")
    def snapshot(self) -> Snapshot:
        """Copies all that training changes within a span, for `restore`; interests' vectors change only at its end."""
        copies = {name: rows.host_copy() for name, rows in self.tensors().items()}
        return Snapshot(copies, self.store.snapshot(), self.catalogue.steps)

    @Phase("snapshot")
    def restore(self, snapshot: Snapshot) -> None:
        """Restores a snapshot of this model, taken since the catalogue last grew and interests were written back."""
        with torch.no_grad():
            for name, rows in self.tensors().items():
                rows.values.copy_(snapshot.tensors[name].values, non_blocking=True)
        self.store.restore(snapshot.store)
        self.catalogue.steps = snapshot.updates

    def tensors(self) -> dict[str, ShardRows]:
        """This rank's rows of the live tensors that training changes, by name; without those of the store."""
        parts = {"catalogue": self.catalogue.flushed_state(), "dense": self.engine.state()}
        return {f"{part}.{name}": rows for part, state in parts.items() for name, rows in state.items()}

    def _prefetch_interests(self, batch: Batch) -> None:
        """Copies a batch's stored interests to the device, if they are elsewhere."""
        if self.store.values.device != self.topology.device:
            with devices.prefetch_stream(self.topology.device):
                self._prefetched = batch, self._stored(batch)

    def _view(self, batch: Batch) -> View:
        """The stored interests of a batch, prefetched or not."""
        if self._prefetched is None or self._prefetched[0] is not batch:
            return self._stored(batch)
        (_, view), self._prefetched = self._prefetched, None
        vectors, mask, _ = view.interests
        devices.wait_for_prefetch(self.topology.device, vectors, mask, view.existing, view.states)
        return view

    def _stored(self, batch: Batch) -> View:
        most = self.store.layout(batch.host.users, batch.span).most
        return self.store.view(self._rows(batch), batch.span, self.topology.device, most)

    def _queries(self, batch: Batch, layout: Layout) -> torch.Tensor:
        return self.store.queries(self._rows(batch), self.topology.device, layout.most)

    def _rows(self, batch: Batch) -> torch.Tensor:
        """The rows of a batch's users, where the store is."""
        here = self.store.values.device == self.topology.device
        return self.store.owned.rows(batch.users if here else batch.host.users)

    def _logits(self, users: torch.Tensor, slots: int, length: int) -> torch.Tensor | None:
        """Random routing logits keyed by (seed, user, slot, place): the same input gives the same interests."""
        if not self.extractor.logit_scale:
            return None
        slot = torch.arange(slots, device=users.device).unsqueeze(-1)
        place = torch.arange(length, device=users.device)
        drawn = keyed_random.normal(1, _LOGITS, self.seed, users[:, None, None], slot, place)  # [B, K, L, 1]
        return self.extractor.logit_scale * drawn.squeeze(-1)

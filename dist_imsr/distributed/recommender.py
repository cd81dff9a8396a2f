"""The distributed model: sharded catalogue, replicated extractor, bucket-local interests."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torchrec import JaggedTensor

from dist_imsr import devices
from dist_imsr.data.batch import Batch
from dist_imsr.data.jagged import pad
from dist_imsr.distributed import keyed_random
from dist_imsr.distributed.catalogue import Catalogue, CatalogueConfig
from dist_imsr.distributed.engine import DenseEngine, EngineConfig
from dist_imsr.distributed.interest_store import InterestStore, InterestStoreConfig, StoreSnapshot, View
from dist_imsr.distributed.rows import ShardRows
from dist_imsr.distributed.topology import Topology
from dist_imsr.model.extractors import ModelConfig, build_extractor
from dist_imsr.model.interests import Interests, Start
from dist_imsr.model.scoring import Candidates, attend, candidates, sampled_softmax
from dist_imsr.phases import Phase

_LOGITS = 0x106175  # a stream of random numbers

Embed = Callable[..., list[torch.Tensor]]
Forward = Callable[[torch.Tensor, torch.Tensor, Start], Interests]


class Extraction(NamedTuple):
    """Interests extracted from a batch's history, with their inputs.

    Args:
        interests: H_u^t, ``[B, K, d]``.
        start: the extractor's start: stored interests, queries, states.
        existing: ``[B, K]`` bool, the interests that are older than the span.
        targets: ``[A, d]``, the targets' embeddings.
        negatives: ``[N, d]``, the negatives' embeddings.
    """

    interests: Interests
    start: Start
    existing: torch.Tensor
    targets: torch.Tensor
    negatives: torch.Tensor


class Scores(NamedTuple):
    """Scores of a batch's targets and negatives, with what they were computed from.

    Args:
        candidates: each target's score and those of the negatives.
        targets: ``[B, T, d]``, the targets' embeddings, padded.
        target_mask: ``[B, T]`` bool, false for padding.
        agreement: ``[B, K, T]``, dot products of interests and targets.
    """

    candidates: Candidates
    targets: torch.Tensor
    target_mask: torch.Tensor
    agreement: torch.Tensor


class Snapshot(NamedTuple):
    """What `Recommender.restore` needs: copies of the trained tensors, and the store's own snapshot."""

    tensors: dict[str, ShardRows]
    store: StoreSnapshot
    updates: int  # of the table, by which Adam corrects its moments


class Objective(Protocol):
    """How a step turns a batch into interests and losses; every strategy is one."""

    def extract(self, model: "Recommender", batch: Batch, training: bool = False) -> Extraction:
        """The interests of the batch's users."""
        ...

    def extra_loss(
        self, model: "Recommender", batch: Batch, extraction: Extraction, scores: Scores
    ) -> torch.Tensor | None:
        """A loss that is added to Eq. 6, summed over this rank's targets; None for none."""
        ...


class NextItem:
    """The plain objective: interests as the base model extracts them, and Eq. 6 alone."""

    def extract(self, model: "Recommender", batch: Batch, training: bool = False) -> Extraction:
        """Extracts the interests of a batch's users from its history (Eq. 1)."""
        return model.extract(batch, training=training)

    def extra_loss(
        self, model: "Recommender", batch: Batch, extraction: Extraction, scores: Scores
    ) -> torch.Tensor | None:
        """Adds nothing to Eq. 6."""
        return None


class Recommender:
    """One rank's part of the model; `extract`, `train_step` and growth are collective.

    Args:
        model: the base model's section.
        catalogue: the catalogue's section.
        store: the interest store's section.
        engine: the engine's section.
        items: the number of items known by the end of each span so far.
        bucket_offsets: the first user of each bucket, and the number of users.
        seed: keys every random first value.
        topology: this rank's place.
        events: a folder for TensorBoard's event files; none without it.
        capacity: the table's rows over all ranks, as a checkpoint has them; by default those of a table that grew from
            one number of ``items`` to the next.
    """

    def __init__(
        self,
        *,
        model: ModelConfig,
        catalogue: CatalogueConfig,
        store: InterestStoreConfig,
        engine: EngineConfig,
        items: Sequence[int],
        bucket_offsets: list[int],
        seed: int,
        topology: Topology,
        events: Path | None = None,
        capacity: int | None = None,
    ) -> None:
        self.config, self.seed, self.topology = model, seed, topology
        self.extractor = build_extractor(model)
        self.catalogue = Catalogue(catalogue, items, model.dim, seed, topology, capacity)
        self.store = InterestStore.build(
            store, bucket_offsets, model.dim, self.extractor.query_dim, seed, topology, self.extractor.state_dim
        )
        self.engine = DenseEngine(self.extractor, engine, topology.device, events)
        self._prefetched: tuple[Batch, View] | None = None

    @Phase("growing")
    def grow(self, items: int) -> None:
        """Makes room for more items, between spans.

        Args:
            items: how many must have a row.
        """
        self.catalogue.grow(items)

    def has_interests(self, users: np.ndarray) -> np.ndarray:
        """Which users have interests.

        Args:
            users: ``[n]`` dense ids of this rank.

        Returns:
            ``[n]`` bool.
        """
        return (self.store.counts[users - self.store.first_user] > 0).numpy(force=True)

    @Phase("admitting")
    def admit(self, users: np.ndarray, span: int, counts: np.ndarray | None = None) -> None:
        """Gives new users their first interests (Algorithm 2, lines 2-6); others keep theirs.

        Args:
            users: ``[n]`` dense ids of this rank.
            span: the current span.
            counts: ``[n]``, the number for each user; ``model.interests`` without it, and where it is 0.
        """
        new, default = ~self.has_interests(users), self.config.interests
        wanted = np.full(len(users), default) if counts is None else np.where(counts > 0, counts, default)
        self.store.expand(torch.from_numpy(users[new] - self.store.first_user), torch.from_numpy(wanted[new]), span)

    def set_learning_rates(self, pretraining: bool) -> None:
        """Changes the learning rates of the catalogue and of the dense weights.

        Args:
            pretraining: whether the parameters are new: in the first span, and in each that is retrained.
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
            training: whether the users' queries are to get a gradient.
            rho: as how many items an existing interest's stored vector counts (erratum E10).
            embed: returns the embeddings of sequences; the catalogue's lookup by default.
            forward: the extractor's forward pass; the engine's by default.

        Returns:
            The interests, with their inputs.
        """
        history, targets, negatives = (embed or self.catalogue.lookup)(batch.history, batch.targets, batch.negatives)
        rows = batch.users - self.store.first_user
        padded, mask = pad(history, batch.history.lengths())
        interests, existing, states = self._view(batch)
        start = Start(
            interests,
            carried=rho * existing if rho else None,
            logits=self._logits(batch.users, interests.mask.shape[1], padded.shape[1]),
            queries=self.store.queries(rows, history.device) if self.extractor.query_dim else None,
            states=states if self.extractor.state_dim else None,
        )
        if training and start.queries is not None:
            start.queries.requires_grad_()
        with Phase("routing"):
            extracted = (forward or self.engine)(padded, mask, start)
        return Extraction(extracted, start, existing, targets, negatives)

    def train_step(
        self,
        batch: Batch,
        following: Batch | None = None,
        *,
        objective: Objective | None = None,
        stop_signal: int = 0,
    ) -> torch.Tensor:
        """One step of training: every parameter moves once.

        Args:
            batch: on this rank's device.
            following: the batch of the next step; what no parameter has a part in is fetched for it meanwhile.
            objective: interests and losses; `NextItem` by default.
            stop_signal: this rank's request to stop, which travels with the losses.

        Returns:
            Each rank's loss of Eq. 6, its extra loss and its stop signal, ``[world_size, 3]`` float64; losses are sums
            over the rank's targets.
        """
        objective = objective or NextItem()
        extraction = objective.extract(self, batch, training=True)
        with Phase("loss"), self.engine.matmul_precision():
            interests, targets, negatives = extraction.interests, extraction.targets, extraction.negatives
            scores = score_batch(batch, interests, targets, negatives)
            extra = objective.extra_loss(self, batch, extraction, scores)
            next_item = sampled_softmax(scores.candidates)
            losses = torch.stack((next_item, next_item.new_zeros(()) if extra is None else extra))
        if following is not None:  # the device is busy by now for as long as the host waits for the other ranks' sizes
            self._prefetch(following)
        # The base model's own regularisation is trained but not reported: losses compare between base models.
        loss = losses.sum() + self.extractor.regularisation(extraction.interests)
        # DeepSpeed and TorchRec divide gradients by the world size; nobody does for the users' own queries.
        self.engine.update(loss * (self.topology.world_size / max(batch.world_targets, 1)))
        queries = extraction.start.queries
        if queries is not None and queries.grad is not None:
            self.store.update_queries(batch.users - self.store.first_user, queries.grad / self.topology.world_size)
        with Phase("losses"):
            reported = losses.detach().double()
            return self.topology.gather(torch.cat([reported, reported.new_tensor([stop_signal])]))

    @Phase("snapshot")
    def snapshot(self) -> Snapshot:
        """Copies everything that training changes but the interests' vectors, which move only when a span ends.

        Returns:
            The copy, for `restore`.
        """
        copies = {name: rows.copied() for name, rows in self.tensors().items()}
        return Snapshot(copies, self.store.snapshot(), self.catalogue.steps)

    @Phase("snapshot")
    def restore(self, snapshot: Snapshot) -> None:
        """Puts a snapshot back.

        Args:
            snapshot: of this model, since the catalogue last grew and interests were last written back.
        """
        with torch.no_grad():
            for name, rows in self.tensors().items():
                rows.values.copy_(snapshot.tensors[name].values)
        self.store.restore(snapshot.store)
        self.catalogue.steps = snapshot.updates

    def tensors(self) -> dict[str, ShardRows]:
        """The live tensors that training changes, except those of the store.

        Returns:
            This rank's rows, by name.
        """
        parts = {"catalogue": self.catalogue.flushed_state(), "dense": self.engine.state()}
        return {f"{part}.{name}": rows for part, state in parts.items() for name, rows in state.items()}

    def _prefetch(self, batch: Batch) -> None:
        """Starts `extract` of a batch, as far as no step of training has a part in it."""
        self.catalogue.start_lookup(batch.history, batch.targets, batch.negatives)
        if self.store.values.device != self.topology.device:
            with devices.prefetch_stream(self.topology.device):
                self._prefetched = batch, self._stored(batch)

    def _view(self, batch: Batch) -> View:
        """The stored interests of a batch, which may have been prefetched."""
        if self._prefetched is None or self._prefetched[0] is not batch:
            return self._stored(batch)
        (_, view), self._prefetched = self._prefetched, None
        devices.wait_for_prefetch(self.topology.device, *view.interests[:2], *view[1:])
        return view

    def _stored(self, batch: Batch) -> View:
        return self.store.view(batch.users - self.store.first_user, batch.span, self.topology.device)

    def _logits(self, users: torch.Tensor, slots: int, length: int) -> torch.Tensor | None:
        """Random routing logits by (seed, user, slot, place), so that the same input gives the same interests."""
        if not self.extractor.logit_scale:
            return None
        slot = torch.arange(slots, device=users.device).unsqueeze(-1)
        place = torch.arange(length, device=users.device)
        drawn = keyed_random.normal(1, _LOGITS, self.seed, users[:, None, None], slot, place)  # [B, K, L, 1]
        return self.extractor.logit_scale * drawn.squeeze(-1)


def score_batch(batch: Batch, interests: Interests, targets: torch.Tensor, negatives: torch.Tensor) -> Scores:
    """Scores a batch's targets and negatives, each for its own v_u of Eq. 5.

    Args:
        batch: B users.
        interests: of the users, ``[B, K, d]``.
        targets: ``[A, d]``, the targets' embeddings.
        negatives: ``[N, d]``, the negatives' embeddings.

    Returns:
        The scores.
    """
    padded, mask = pad(targets, batch.targets.lengths())
    agreement = interests.vectors @ padded.mT
    place = mask.flatten().nonzero().squeeze(1)
    users, wanted = (block.flatten(0, 1)[place] for block in (attend(interests, agreement), padded))
    scored = candidates(users, wanted, negatives, batch.targets.values(), batch.negatives.values())
    return Scores(scored, padded, mask, agreement)


def sequence(items: torch.Tensor) -> JaggedTensor:
    """Item ids as one sequence, for `Catalogue.lookup`.

    Args:
        items: ``[n]`` int64.

    Returns:
        The sequence.
    """
    return JaggedTensor(items, lengths=torch.tensor([len(items)], device=items.device))

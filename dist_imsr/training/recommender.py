"""The whole distributed model: sharded catalogue, replicated extractor, bucket-local interests."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dist_imsr import devices
from dist_imsr.data.batch import Batch
from dist_imsr.data.jagged import pad
from dist_imsr.distributed import keyed_random
from dist_imsr.distributed.catalogue import Catalogue, CatalogueConfig
from dist_imsr.distributed.engine import DenseEngine, EngineConfig
from dist_imsr.distributed.interest_store import InterestStore, InterestStoreConfig, StoreSnapshot, View
from dist_imsr.distributed.rows import ShardRows
from dist_imsr.distributed.topology import Topology
from dist_imsr.evaluation.ranking import Ranker, RankingConfig
from dist_imsr.model.extractors import ModelConfig, build_extractor
from dist_imsr.model.interests import Interests, Start
from dist_imsr.model.retainers import Drift
from dist_imsr.model.scoring import Candidates, attend, candidates, sampled_softmax
from dist_imsr.phases import Phase
from dist_imsr.strategies.companion import Companion, Parts
from dist_imsr.strategies.interests import InterestPolicy
from dist_imsr.training.growth import Growth

_LOGITS = 0x106175  # a stream of random numbers


class Extraction(NamedTuple):
    """Interests extracted from a batch's history, and what came along.

    Args:
        interests: H_u^t, ``[B, K, d]``.
        start: what the extractor began with.
        existing: ``[B, K]`` bool, the interests that are older than the span.
        targets: ``[A, d]``, the targets' embeddings.
        negatives: ``[N, d]``, those of the negatives.
    """

    interests: Interests
    start: Start
    existing: torch.Tensor
    targets: torch.Tensor
    negatives: torch.Tensor


class Snapshot(NamedTuple):
    """What `Recommender.restore` takes: copies of the trained tensors, and the store's own snapshot."""

    tensors: dict[str, ShardRows]
    store: StoreSnapshot
    updates: int  # of the table, by which Adam corrects its moments


class Recommender:
    """One rank's part of the model; `extract`, `update` and what trains are collective.

    Args:
        policy: what becomes of existing and of new interests.
        companion: what the strategy keeps beside the model.
        model: the model's section.
        catalogue: the catalogue's section.
        store: the interest store's section.
        engine: the engine's section.
        ranking: the ranking's section.
        items: how many items each of the spans so far knows.
        bucket_offsets: the first user of each bucket, and the number of users.
        seed: keys every random first value.
        topology: this rank's place.
        events: a folder for TensorBoard's event files; none without it.
    """

    def __init__(
        self,
        policy: InterestPolicy,
        companion: Companion,
        model: ModelConfig,
        catalogue: CatalogueConfig,
        store: InterestStoreConfig,
        engine: EngineConfig,
        ranking: RankingConfig,
        items: Sequence[int],
        bucket_offsets: list[int],
        seed: int,
        topology: Topology,
        events: Path | None = None,
    ) -> None:
        self.policy, self.companion, self.config, self.seed, self.topology = policy, companion, model, seed, topology
        self.extractor = companion.wrap(build_extractor(model))
        self.catalogue = Catalogue(catalogue, items, model.dim, seed, topology)
        widths = model.dim, self.extractor.query_dim
        self.store = InterestStore.build(store, bucket_offsets, *widths, seed, topology, self.extractor.state_dim)
        self.engine = DenseEngine(self.extractor, engine, topology.device, events)
        self.ranker = Ranker(self.catalogue, topology, model.score, ranking)
        self._prefetched: tuple[Batch, View] | None = None
        companion.join(Parts(self.catalogue, self.engine, self.store, topology, self.extractor))

    @Phase("growing")
    def grow(self, items: int) -> None:
        """Makes room for more items, between spans.

        Args:
            items: how many must have a row.
        """
        self.catalogue.grow(items)
        self.companion.grow(items)

    def knows(self, users: np.ndarray) -> np.ndarray:
        """Whether users have interests.

        Args:
            users: ``[n]`` dense ids of this rank.

        Returns:
            ``[n]`` bool.
        """
        return (self.store.counts[users - self.store.first_user] > 0).numpy(force=True)

    @Phase("admitting")
    def admit(self, users: np.ndarray, span: int, counts: np.ndarray | None = None) -> None:
        """Gives users whom the store does not know their K_u^0 interests.

        Args:
            users: ``[n]`` dense ids of this rank, who may be known.
            span: the span at hand.
            counts: ``[n]``, how many each of them gets; ``model.interests`` without it, and where it is 0.
        """
        new, most = ~self.knows(users), self.config.interests
        wanted = np.full(len(users), most) if counts is None else np.where(counts > 0, counts, most)
        self.store.expand(torch.from_numpy(users[new] - self.store.first_user), torch.from_numpy(wanted[new]), span)

    def set_learning_rates(self, pretraining: bool) -> None:
        """Changes the rates of the catalogue and of the dense weights from here on.

        Args:
            pretraining: whether the parameters are new: in the first span, and in each that is retrained.
        """
        for part in (self.catalogue, self.engine):
            config = part.config
            part.set_learning_rate(config.learning_rate if pretraining else config.incremental_learning_rate)

    def extract(self, batch: Batch, learning: bool = False) -> Extraction:
        """Extracts the interests of a batch's users from its history (Eq. 1), new ones projected (Eq. 16).

        Args:
            batch: on this rank's device.
            learning: whether the users' queries are to get a gradient.

        Returns:
            The interests, and what came along.
        """
        history, targets, negatives = self.companion.lookup(batch.history, batch.targets, batch.negatives)
        rows = batch.users - self.store.first_user
        padded, mask = pad(history, batch.history.lengths())
        interests, existing, states = self._view(batch)
        start = Start(
            interests,
            carried=self.policy.rho * existing if self.policy.rho else None,
            logits=self._logits(batch.users, interests.mask.shape[1], padded.shape[1]),
            queries=self.store.queries(rows, history.device) if self.extractor.query_dim else None,
            states=states if self.extractor.state_dim else None,
        )
        if learning and start.queries is not None:
            start.queries.requires_grad_()
        with Phase("routing"):
            extracted = self.companion.revise(self.companion.dense(padded, mask, start), start, existing)
            revised = self.policy.revise(extracted, existing)
        return Extraction(revised, start, existing, targets, negatives)

    def loss(self, batch: Batch, extraction: Extraction) -> tuple[torch.Tensor, torch.Tensor]:
        """Eq. 6, and what the strategy adds with its weight, both summed over this rank's targets.

        Args:
            batch: on this rank's device.
            extraction: of the batch.

        Returns:
            Two scalars with gradient.
        """
        interests, start, existing, targets, negatives = extraction
        targets, asked = pad(targets, batch.targets.lengths())
        agreement = interests.vectors @ targets.mT
        then, now, mask = start.interests.vectors, interests.vectors, interests.mask
        drift = Drift(then, now, existing, mask, targets, agreement, asked, negatives)
        scores = scores_of(batch, interests, targets, agreement, asked, negatives)
        added = self.policy.penalty(drift) + self.companion.penalty(batch, start, scores, self)
        return sampled_softmax(scores), added

    def scores(self, batch: Batch, interests: Interests, targets: torch.Tensor, negatives: torch.Tensor) -> Candidates:
        """Scores of a batch's targets and negatives.

        Args:
            batch: B users.
            interests: of the users, ``[B, K, d]``.
            targets: ``[A, d]``, the targets' embeddings.
            negatives: ``[N, d]``, those of the negatives.

        Returns:
            The scores.
        """
        targets, asked = pad(targets, batch.targets.lengths())
        return scores_of(batch, interests, targets, interests.vectors @ targets.mT, asked, negatives)

    def update(self, batch: Batch, following: Batch | None = None, word: int = 0) -> torch.Tensor:
        """One step of training: every parameter moves once.

        Args:
            batch: on this rank's device.
            following: the batch of the next step; what can be fetched for it before this step has moved anything is on
                its way meanwhile.
            word: a number that this rank tells the others in passing.

        Returns:
            Each rank's two losses as `loss` tells them, and its word, ``[world_size, 3]`` float64.
        """
        extraction = self.extract(batch, learning=True)
        with Phase("loss"), self.engine.matmul_precision():
            losses = torch.stack(self.loss(batch, extraction))
        if following is not None:  # a device has work by now for as long as the host waits for others' sizes
            self._ask(following)
        # What a base model asks for itself is trained on, and not told: the losses compare between base models.
        loss = losses.sum() + self.extractor.regularisation(extraction.interests)
        # DeepSpeed and TorchRec divide gradients by the world size; nobody does for the users' own queries.
        self.engine.update(loss * (self.topology.world_size / max(batch.world_targets, 1)))
        queries = extraction.start.queries
        if queries is not None and queries.grad is not None:
            self.store.update_queries(batch.users - self.store.first_user, queries.grad / self.topology.world_size)
        with Phase("losses"):
            told = losses.detach().double()
            return self.topology.gather(torch.cat([told, told.new_tensor([word])]))

    @Phase("trimmer")
    def trim(self, span: int) -> Growth:
        """PIT's last step: removes the new interests that are too short (Eq. 17), once they are written back.

        First interests of new users stay whatever their norm.

        Args:
            span: the span of their birth.

        Returns:
            What was kept and what went.
        """
        store, trimmer = self.store, self.policy.trimmer
        created = store.created(span)
        norms = store.norms(created)
        stays = norms >= trimmer.c2 if trimmer.trim else torch.ones_like(norms, dtype=torch.bool)
        kept, trimmed = norms[stays].double(), norms[~stays].double()
        if len(trimmed):
            store.trim(torch.ones_like(store.birth_span, dtype=torch.bool).index_fill_(0, created[~stays], False))
        return Growth(
            kept=len(kept),
            trimmed=len(trimmed),
            norm_kept=kept.sum().item(),
            norm_trimmed=trimmed.sum().item(),
        )

    @Phase("snapshot")
    def snapshot(self) -> Snapshot:
        """Copies everything that training changes but the interests' vectors, which move only when a span ends.

        Returns:
            What `restore` takes.
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
        """The live tensors that training changes, those of the store left out.

        Returns:
            This rank's rows, by name.
        """
        parts = {"catalogue": self.catalogue.flushed_state(), "dense": self.engine.state()}
        return {f"{part}.{name}": rows for part, state in parts.items() for name, rows in state.items()}

    def _ask(self, batch: Batch) -> None:
        """Begins `extract` of a batch, as far as no step of training has a part in it."""
        self.companion.start_lookup(batch.history, batch.targets, batch.negatives)
        if self.store.values.device != self.topology.device:
            with devices.prefetch_stream(self.topology.device):
                self._prefetched = batch, self._seen(batch)

    def _view(self, batch: Batch) -> View:
        """Interests of a batch, which `_ask` may have sent on their way."""
        if self._prefetched is None or self._prefetched[0] is not batch:
            return self._seen(batch)
        (_, view), self._prefetched = self._prefetched, None
        devices.wait_for_prefetch(self.topology.device, *view.interests[:2], *view[1:])
        return view

    def _seen(self, batch: Batch) -> View:
        return self.store.view(batch.users - self.store.first_user, batch.span, self.topology.device)

    def _logits(self, users: torch.Tensor, slots: int, length: int) -> torch.Tensor | None:
        """Random routing logits by (seed, user, slot, place), so that the same input gives the same interests."""
        if not self.extractor.logit_scale:
            return None
        slot = torch.arange(slots, device=users.device).unsqueeze(-1)
        place = torch.arange(length, device=users.device)
        drawn = keyed_random.normal(1, _LOGITS, self.seed, users[:, None, None], slot, place)  # [B, K, L, 1]
        return self.extractor.logit_scale * drawn.squeeze(-1)


def scores_of(
    batch: Batch,
    interests: Interests,
    targets: torch.Tensor,
    agreement: torch.Tensor,
    asked: torch.Tensor,
    negatives: torch.Tensor,
) -> Candidates:
    """Scores of a batch's targets and negatives, each for its own v_u of Eq. 5.

    Args:
        batch: B users.
        interests: of the users, ``[B, K, d]``.
        targets: ``[B, T, d]`` embeddings, padded.
        agreement: ``[B, K, T]``, their dot products with the interests.
        asked: ``[B, T]`` bool, false for padding.
        negatives: ``[N, d]`` embeddings.

    Returns:
        The scores.
    """
    place = asked.flatten().nonzero().squeeze(1)
    users, wanted = (block.flatten(0, 1)[place] for block in (attend(interests, agreement), targets))
    return candidates(users, wanted, negatives, batch.targets.values(), batch.negatives.values())

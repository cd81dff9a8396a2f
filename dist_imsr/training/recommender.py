"""The whole distributed model: sharded catalogue, replicated extractor, bucket-local interests."""

from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from torchrec import JaggedTensor

from dist_imsr.data.batch import Batch, SpanData
from dist_imsr.distributed.catalogue import Catalogue, CatalogueConfig
from dist_imsr.distributed.engine import DenseEngine, EngineConfig
from dist_imsr.distributed.interest_store import InterestStore, InterestStoreConfig
from dist_imsr.distributed.topology import Topology
from dist_imsr.evaluation.ranking import target_ranks
from dist_imsr.model.extractors import ModelConfig, build_extractor
from dist_imsr.model.interests import Interests
from dist_imsr.model.scoring import attend, sampled_softmax


class Recommender:
    """One rank's part of the model; every method but `knows` and `admit` is collective.

    Args:
        model: the model's section.
        catalogue: the catalogue's section.
        store: the interest store's section.
        engine: the engine's section.
        items: how many items the first span knows.
        bucket_offsets: the first user of each bucket, and the number of users.
        seed: keys every random first value.
        topology: this rank's place.
        events: a folder for TensorBoard's event files; none without it.
    """

    def __init__(
        self,
        model: ModelConfig,
        catalogue: CatalogueConfig,
        store: InterestStoreConfig,
        engine: EngineConfig,
        items: int,
        bucket_offsets: list[int],
        seed: int,
        topology: Topology,
        events: Path | None = None,
    ) -> None:
        self.config, self.topology = model, topology
        self.catalogue = Catalogue(catalogue, items, model.dim, seed, topology)
        self.store = InterestStore.build(store, bucket_offsets, model.dim, seed, topology)
        self.engine = DenseEngine(build_extractor(model), engine, topology.device, events)

    def knows(self, users: np.ndarray) -> np.ndarray:
        """Whether users have interests.

        Args:
            users: ``[n]`` dense ids of this rank.

        Returns:
            ``[n]`` bool.
        """
        return (self.store.counts[users - self.store.first_user] > 0).numpy(force=True)

    def admit(self, data: SpanData) -> None:
        """Gives the users whom a span shows for the first time their K_u^0 interests.

        Args:
            data: the span.
        """
        newcomers = data.users[~self.knows(data.users)] - self.store.first_user
        self.store.expand(torch.from_numpy(newcomers), self.config.interests, data.span)

    def interests(self, batch: Batch) -> tuple[Interests, torch.Tensor, torch.Tensor]:
        """Extracts the interests of a batch's users from its history (Eq. 1).

        Args:
            batch: on this rank's device.

        Returns:
            H_u^t ``[B, K, d]``, the targets' embeddings ``[A, d]`` and those of the negatives ``[N, d]``.
        """
        history, targets, negatives = self.catalogue.lookup(batch.history, batch.targets, batch.negatives)
        start = self.store.gather(batch.users - self.store.first_user, history.device)
        padded, mask = pad(history, batch.history.lengths())
        return self.engine(padded, mask, start), targets, negatives

    def loss(self, batch: Batch) -> torch.Tensor:
        """Eq. 6, summed over this rank's targets.

        Args:
            batch: on this rank's device.

        Returns:
            A scalar with gradient.
        """
        return loss_of(batch, *self.interests(batch))

    def update(self, batch: Batch) -> torch.Tensor:
        """One step of training: every parameter moves once.

        Args:
            batch: on this rank's device.

        Returns:
            Each rank's loss, summed over its targets, ``[world_size]`` float64.
        """
        loss = self.loss(batch)
        # DeepSpeed and TorchRec divide gradients by the world size.
        self.engine.update(loss * (self.topology.world_size / max(batch.world_targets, 1)))
        return self.topology.gather(loss.detach().double())

    def ranks(self, interests: Interests, targets: JaggedTensor, items: int) -> torch.Tensor:
        """Ranks targets over the whole catalogue.

        Args:
            interests: of B users.
            targets: B sequences of item ids.
            items: ids below it are ranked.

        Returns:
            One rank for each value of ``targets``, float64; 1 is the best.
        """
        nobody = JaggedTensor(targets.values().new_empty(0), lengths=targets.lengths().new_zeros(1))
        embeddings, _ = self.catalogue.lookup(targets, nobody)
        owners = _owners(targets)
        return target_ranks(
            self.catalogue, self.topology, interests, targets.values(), owners, embeddings, items, self.config.score
        )

    def snapshot(self) -> list[torch.Tensor]:
        """Copies everything that training changes but the interests, which move only when a span ends.

        Returns:
            What `restore` takes.
        """
        return [tensor.detach().clone() for tensor in self._state()]

    def restore(self, snapshot: list[torch.Tensor]) -> None:
        """Puts a snapshot back.

        Args:
            snapshot: of this model, since the catalogue last grew.
        """
        with torch.no_grad():
            # Moments that did not exist yet were as good as zero.
            for tensor, saved in zip_longest(self._state(), snapshot):
                tensor.zero_() if saved is None else tensor.copy_(saved)

    def _state(self) -> list[torch.Tensor]:
        return [*self.catalogue.state.values(), *self.engine.state()]


def loss_of(batch: Batch, interests: Interests, targets: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
    """Eq. 5 and 6 for a batch, summed over its targets.

    Args:
        batch: B users with A targets in all.
        interests: of the users, ``[B, K, d]``.
        targets: ``[A, d]`` embeddings.
        negatives: ``[N, d]`` embeddings.

    Returns:
        A scalar.
    """
    owners = _owners(batch.targets)
    asked = Interests(interests.vectors[owners], interests.mask[owners])
    return sampled_softmax(attend(asked, targets), targets, negatives, batch.targets.values(), batch.negatives.values())


def pad(values: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads sequences to the longest of them.

    Args:
        values: ``[sum of lengths, d]``.
        lengths: ``[B]`` int64.

    Returns:
        ``[B, L, d]``, and the mask ``[B, L]`` that is false for padding.
    """
    longest = int(lengths.max()) if len(lengths) else 0
    mask = torch.arange(longest, device=values.device) < lengths.unsqueeze(1)
    return JaggedTensor(values, lengths=lengths).to_padded_dense(longest), mask


def _owners(targets: JaggedTensor) -> torch.Tensor:
    """The place of each value's sequence, ``[A]`` int64."""
    lengths = targets.lengths()
    return torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)

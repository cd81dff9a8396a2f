"""What a strategy keeps beside the model, and how it takes part in a span's training."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torchrec import JaggedTensor

from dist_imsr.data.batch import Batch
from dist_imsr.data.steps import Follow
from dist_imsr.distributed.catalogue import Catalogue
from dist_imsr.distributed.engine import DenseEngine
from dist_imsr.distributed.interest_store import InterestStore
from dist_imsr.distributed.rows import ShardRows
from dist_imsr.distributed.topology import Topology
from dist_imsr.model.extractors import Extractor
from dist_imsr.model.interests import Interests, Start
from dist_imsr.model.scoring import Candidates


class Forward(Protocol):
    """What a recommender does with a batch."""

    def scores(self, batch: Batch, interests: Interests, targets: torch.Tensor, negatives: torch.Tensor) -> Candidates:
        """Scores of the batch's targets and negatives, given their embeddings."""
        ...

    def extract(self, batch: Batch) -> Any:
        """Interests and embeddings of a batch."""
        ...


@dataclass(frozen=True)
class Parts:
    """The parts of the recommender at hand.

    Args:
        catalogue: the item table.
        engine: around the extractor.
        store: the interests.
        topology: this rank's place.
        extractor: the dense module, as the companion wrapped it.
    """

    catalogue: Catalogue
    engine: DenseEngine
    store: InterestStore
    topology: Topology
    extractor: Extractor


class Companion:
    """Keeps nothing and changes nothing: what strategies have that need no more than their data and policy.

    A companion sleeps in the pre-training span. `wake` comes before the first later one, and with a checkpoint that was
    written since; whatever is collective on one rank is so on all.
    """

    parts: Parts
    awake = False

    def wrap(self, extractor: Extractor) -> Extractor:
        """What takes the place of a new extractor.

        Args:
            extractor: as the base model builds it.

        Returns:
            The dense module that is trained.
        """
        return extractor

    def join(self, parts: Parts) -> None:
        """Meets the recommender that it stands beside.

        Args:
            parts: of it, before they have learnt anything.
        """
        self.parts = parts

    def wake(self) -> None:
        """Makes room for what it keeps; collective."""
        self.awake = True

    def begin(self, data: Any, forward: Forward, follow: Follow, fresh: bool) -> None:
        """Prepares for the training of a span after the first; collective.

        Args:
            data: of the span.
            forward: the recommender.
            follow: goes through batches.
            fresh: whether nothing of the span was trained yet; else a run goes on in the middle of it.
        """

    def lookup(self, *sequences: JaggedTensor) -> list[torch.Tensor]:
        """The embeddings that the model works with; collective.

        Args:
            sequences: as `Catalogue.lookup` takes them.

        Returns:
            For each ``[sum of its lengths, d]``.
        """
        return self.parts.catalogue.lookup(*sequences)

    def start_lookup(self, *sequences: JaggedTensor) -> None:
        """Begins what `lookup` of the same sequences will do, as far as no parameter has a part in it; collective.

        Args:
            sequences: as `Catalogue.lookup` takes them.
        """
        self.parts.catalogue.start_lookup(*sequences)

    def dense(self, items: torch.Tensor, mask: torch.Tensor, start: Start) -> Interests:
        """The extractor's forward pass; shapes as in `Extractor`."""
        interests: Interests = self.parts.engine(items, mask, start)
        return interests

    def revise(self, interests: Interests, start: Start, existing: torch.Tensor) -> Interests:
        """The extracted interests as the forward pass goes on with them.

        Args:
            interests: ``[B, K, d]``.
            start: what the extractor began with.
            existing: ``[B, K]`` bool, the interests that are older than the span.

        Returns:
            The interests.
        """
        return interests

    def penalty(self, batch: Batch, start: Start, scores: Candidates, forward: Forward) -> torch.Tensor:
        """A loss beside Eq. 6, summed over this rank's targets; collective.

        Args:
            batch: on this rank's device.
            start: what the extractor began with.
            scores: of all its targets.
            forward: the recommender.

        Returns:
            A scalar.
        """
        return scores.positive.new_zeros(())

    def preview(self) -> None:
        """Makes the parameters those that would be used if training ended here; collective."""

    def resume(self) -> None:
        """Goes back to the parameters that are trained, where `preview` left them."""

    def settle(self) -> None:
        """Makes the parameters those to be used, once a span is trained; collective."""

    def grow(self, items: int) -> None:
        """Follows the catalogue; collective.

        Args:
            items: how many items are known from here on.
        """

    def state(self) -> dict[str, ShardRows]:
        """What a checkpoint holds of it.

        Returns:
            Live tensors by name; nothing while it sleeps.
        """
        return {}

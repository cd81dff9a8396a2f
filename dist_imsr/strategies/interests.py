"""What a strategy does with interests, existing and new, when a span arrives."""

from dataclasses import dataclass, field

import torch

from dist_imsr.checks import require
from dist_imsr.model.detector import DetectorConfig
from dist_imsr.model.interests import Interests
from dist_imsr.model.retainers import RETAINERS, Drift, RetainerConfig
from dist_imsr.model.trimmer import TrimmerConfig, project


@dataclass
class InterestPolicy:
    """IMSR's parts, each of which can be switched off.

    Args:
        rho: as how many items an existing interest's stored vector counts in the new one (erratum E10); 0 is the
            paper's text.
        detector: NID, when new interests are created.
        trimmer: PIT, what of them is kept.
        retainer: EIR, how existing interests are held.
    """

    rho: float = 2.0
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    trimmer: TrimmerConfig = field(default_factory=TrimmerConfig)
    retainer: RetainerConfig = field(default_factory=RetainerConfig)

    def __post_init__(self) -> None:
        require(self.rho >= 0, "strategy.imsr.rho", self.rho, "at least 0")

    @classmethod
    def plain(cls) -> "InterestPolicy":
        """Interests that are re-made from the span's items and stay as many as they were."""
        return cls(0.0, DetectorConfig(enabled=False), TrimmerConfig(project=False, trim=False), RetainerConfig("none"))

    def revise(self, interests: Interests, existing: torch.Tensor) -> Interests:
        """The extracted interests as the forward pass goes on with them.

        Args:
            interests: H_u^t of the extractor, ``[B, K, d]``.
            existing: ``[B, K]`` bool, the interests that are older than the span.

        Returns:
            The interests, the new ones projected where the trimmer says so.
        """
        return project(interests, existing) if self.trimmer.project else interests

    def penalty(self, drift: Drift) -> torch.Tensor:
        """The retainer's loss with its weight, summed over targets.

        Args:
            drift: of a batch.

        Returns:
            A scalar; zero without a retainer or without existing interests.
        """
        if self.retainer.name == "none" or not drift.existing.any():
            return drift.now.new_zeros(())
        return self.retainer.weight * RETAINERS[self.retainer.name](drift, self.retainer.tau)

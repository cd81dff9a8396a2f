"""Statistics of how a span changes interests, counted by each rank and summed over all ranks."""

import math
from dataclasses import dataclass, field, fields

import torch
from torch.nn.functional import pad

from dist_imsr.distributed.interest_store import InterestStore
from dist_imsr.distributed.topology import Topology

_QUANTILES = (0.1, 0.5, 0.9)


class Histogram:
    """Counts of values in bins, whose sum over ranks gives quantiles without gathering the values.

    Bins are equally wide in asinh(x / scale): linear around zero, logarithmic beyond.

    Args:
        scale: where the bins change from linear to logarithmic.
        high: values beyond -high and high are clamped.
        bins: the number of bins.
    """

    def __init__(self, scale: float = 0.01, high: float = 1e3, bins: int = 2048) -> None:
        self.scale, self.edge = scale, math.asinh(high / scale)
        self.counts = torch.zeros(bins, dtype=torch.float64)

    def add(self, values: torch.Tensor) -> None:
        """Counts values ``[n]``."""
        bins = len(self.counts)
        place = ((values.double() / self.scale).asinh() / self.edge + 1) / 2 * bins
        self.counts += torch.bincount(place.long().clamp(0, bins - 1).cpu(), minlength=bins)

    def quantile(self, share: float) -> float | None:
        """The middle of the bin of a quantile; None without values.

        Args:
            share: 0 to 1.
        """
        total, bins = float(self.counts.sum()), len(self.counts)
        if total == 0:
            return None
        place = min(int(torch.searchsorted(self.counts.cumsum(0), share * total)), bins - 1)
        return self.scale * math.sinh((2 * (place + 0.5) / bins - 1) * self.edge)


@dataclass
class Growth:
    """One span's statistics of interests.

    ``created = kept + trimmed`` and ``created + refused = puzzled * delta_k``. New users' first interests are not
    counted, as the detector does not create them.

    Args:
        puzzled: number of puzzled users, those of each detection.
        created: number of interests that the detector created.
        refused: number of interests that K_max prevented.
        kept: number of created interests that were kept at the end of the span.
        trimmed: number of created interests that were trimmed.
        norm_kept: sum of the norms of kept interests.
        norm_trimmed: sum of the norms of trimmed interests.
        existing: number of existing interests of the span's users.
        cosine: sum of the cosines between an existing interest before and after the span.
        detected: number of users with a measured fit.
        fit: sum of their fits, which are compared with c1.
        fit_histogram: of their fits.
    """

    puzzled: float = 0.0
    created: float = 0.0
    refused: float = 0.0
    kept: float = 0.0
    trimmed: float = 0.0
    norm_kept: float = 0.0
    norm_trimmed: float = 0.0
    existing: float = 0.0
    cosine: float = 0.0
    detected: float = 0.0
    fit: float = 0.0
    fit_histogram: Histogram = field(default_factory=Histogram)

    def __add__(self, other: "Growth") -> "Growth":
        return Growth.from_flat(self.flat() + other.flat())

    def summed(self, topology: Topology) -> "Growth":
        """The sum over all ranks; collective."""
        return Growth.from_flat(topology.sum(self.flat()))

    def flat(self) -> torch.Tensor:
        """All fields as ``[n]`` float64, those of the histogram at the end."""
        *numbers, histogram = vars(self).values()
        return torch.cat([torch.tensor(numbers, dtype=torch.float64), histogram.counts])

    @classmethod
    def from_flat(cls, flat: torch.Tensor) -> "Growth":
        """The inverse of `flat`."""
        names = [one.name for one in fields(cls)][:-1]
        growth = cls(**dict(zip(names, flat[: len(names)].tolist(), strict=True)))
        growth.fit_histogram.counts = flat[len(names) :].clone()
        return growth

    def record(self) -> dict[str, float | int | None]:
        """The keys of metrics.jsonl; a mean over nothing is None."""

        def mean(total: float, count: float) -> float | None:
            return total / count if count else None

        return {
            "interests_created": int(self.created),
            "interests_kept": int(self.kept),
            "interests_trimmed": int(self.trimmed),
            "interests_refused": int(self.refused),
            "puzzled_users": int(self.puzzled),
            "fit_mean": mean(self.fit, self.detected),
            **{f"fit_p{int(share * 100)}": self.fit_histogram.quantile(share) for share in _QUANTILES},
            "norm_kept": mean(self.norm_kept, self.kept),
            "norm_trimmed": mean(self.norm_trimmed, self.trimmed),
            "existing_cosine": mean(self.cosine, self.existing),
        }


def store_stats(store: InterestStore, topology: Topology) -> dict[str, float | int]:
    """Statistics of interests per user, over the users who have any, and the store's bytes on all ranks; collective.

    Returns:
        The keys of metrics.jsonl.
    """
    largest = int(topology.gather(pad(store.counts, (0, 1)).amax().to(topology.device)).amax())
    users = topology.sum(torch.bincount(store.counts.cpu(), minlength=largest + 1))[1:].double()
    interests, cumulative = torch.arange(1, largest + 1), users.cumsum(0)
    total = float(cumulative[-1]) if largest else 0.0
    return {
        "interests_mean": float(users @ interests.double()) / max(total, 1),
        "interests_p50": 1 + int(torch.searchsorted(cumulative, 0.50 * total)) if total else 0,
        "interests_p95": 1 + int(torch.searchsorted(cumulative, 0.95 * total)) if total else 0,
        "interests_max": largest,
        "store_bytes": int(topology.sum(torch.tensor([store.bytes]))),
    }

"""What a span did to interests, counted by each rank and summed over all."""

import math
from dataclasses import dataclass, field, fields

import torch
from torch.nn.functional import pad

from dist_imsr.distributed.interest_store import InterestStore
from dist_imsr.distributed.topology import Topology

_QUANTILES = (0.1, 0.5, 0.9)


class Histogram:
    """Counts of numbers in bins, so that quantiles need no gathering of the numbers.

    Bins are equally wide in asinh(x / scale): linear around zero, of equal ratio beyond.

    Args:
        scale: where the one gives way to the other.
        high: numbers beyond -high and high are counted as these.
        bins: how many.
    """

    def __init__(self, scale: float = 0.01, high: float = 1e3, bins: int = 2048) -> None:
        self.scale, self.edge = scale, math.asinh(high / scale)
        self.counts = torch.zeros(bins, dtype=torch.float64)

    def add(self, values: torch.Tensor) -> None:
        """Counts numbers.

        Args:
            values: ``[n]``.
        """
        bins = len(self.counts)
        place = ((values.double() / self.scale).asinh() / self.edge + 1) / 2 * bins
        self.counts += torch.bincount(place.long().clamp(0, bins - 1).cpu(), minlength=bins)

    def quantile(self, share: float) -> float | None:
        """The number below which a share of the numbers lies.

        Args:
            share: 0 to 1.

        Returns:
            The middle of its bin; None without numbers.
        """
        total, bins = float(self.counts.sum()), len(self.counts)
        if total == 0:
            return None
        place = min(int(torch.searchsorted(self.counts.cumsum(0), share * total)), bins - 1)
        return self.scale * math.sinh((2 * (place + 0.5) / bins - 1) * self.edge)


@dataclass
class Growth:
    """One span's account of interests.

    The identities that hold: ``created = kept + trimmed``, and each detection asks for ``delta_k`` interests a puzzled
    user, which are created or refused. New users' first interests are not counted: nothing detected them.

    Args:
        puzzled: users whom the detector singled out.
        created: interests that the detector made.
        refused: interests that K_max refused.
        kept: created interests that stay.
        trimmed: created interests that went when the span ended.
        norm_kept: sum of the norms of those that stay.
        norm_trimmed: sum of the norms of those that went.
        existing: existing interests of the span's users.
        cosine: sum over them of the cosine between what was stored and what is.
        detected: users whom the detector could judge.
        fit: sum over these of what is compared with c1: how well their items fit their interests.
        fits: these numbers.
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
    fits: Histogram = field(default_factory=Histogram)

    def __add__(self, other: "Growth") -> "Growth":
        return Growth.of(self.flat() + other.flat())

    def summed(self, topology: Topology) -> "Growth":
        """The account of all ranks; collective.

        Args:
            topology: this rank's place.

        Returns:
            A new account.
        """
        return Growth.of(topology.sum(self.flat()))

    def flat(self) -> torch.Tensor:
        """All its numbers, the counts of the histogram at the end.

        Returns:
            ``[n]`` float64; n is the same for every account.
        """
        *numbers, histogram = vars(self).values()
        return torch.cat([torch.tensor(numbers, dtype=torch.float64), histogram.counts])

    @classmethod
    def of(cls, flat: torch.Tensor) -> "Growth":
        """The account of such numbers.

        Args:
            flat: as `flat` tells them.

        Returns:
            A new account.
        """
        numbers = len(fields(cls)) - 1
        account = cls(*flat[:numbers].tolist())
        account.fits.counts = flat[numbers:].clone()
        return account

    def record(self) -> dict[str, float | int | None]:
        """The keys of metrics.jsonl; a mean over nothing is None.

        Returns:
            Numbers by key.
        """

        def mean(total: float, count: float) -> float | None:
            return total / count if count else None

        return {
            "interests_created": int(self.created),
            "interests_kept": int(self.kept),
            "interests_trimmed": int(self.trimmed),
            "interests_refused": int(self.refused),
            "puzzled_users": int(self.puzzled),
            "fit_mean": mean(self.fit, self.detected),
            **{f"fit_p{int(share * 100)}": self.fits.quantile(share) for share in _QUANTILES},
            "norm_kept": mean(self.norm_kept, self.kept),
            "norm_trimmed": mean(self.norm_trimmed, self.trimmed),
            "existing_cosine": mean(self.cosine, self.existing),
        }


def store_stats(store: InterestStore, topology: Topology) -> dict[str, float | int]:
    """Interests a user over the users who have any, and what the store takes on all ranks; collective.

    Args:
        store: this rank's.
        topology: this rank's place.

    Returns:
        The keys of metrics.jsonl.
    """
    most = int(topology.gather(pad(store.counts, (0, 1)).amax().to(topology.device)).amax())
    users = topology.sum(torch.bincount(store.counts.cpu(), minlength=most + 1)).double()[1:]  # with 1, 2 .. interests
    have, each = users.cumsum(0), torch.arange(1, most + 1)
    total = float(have[-1]) if most else 0.0
    return {
        "interests_mean": float(users @ each.double()) / max(total, 1),
        "interests_p50": 1 + int(torch.searchsorted(have, 0.50 * total)) if total else 0,
        "interests_p95": 1 + int(torch.searchsorted(have, 0.95 * total)) if total else 0,
        "interests_max": most,
        "store_bytes": int(topology.sum(torch.tensor([store.bytes]))),
    }

"""New interests for the users whose items fit none of theirs, batch by batch."""

from collections.abc import Iterable
from typing import NamedTuple

import torch

from dist_imsr.data.batch import Batch
from dist_imsr.data.jagged import pad
from dist_imsr.distributed.catalogue import Catalogue
from dist_imsr.distributed.interest_store import InterestStore
from dist_imsr.model.detector import DetectorConfig, item_fit, user_fit
from dist_imsr.model.interests import Interests
from dist_imsr.strategies.growth import Growth


class Detection(NamedTuple):
    """What the detector said of users with existing interests.

    Args:
        users: ``[n]`` int64, dense ids.
        fit: ``[n]``, what is compared with c1.
        puzzled: ``[n]`` bool.
    """

    users: torch.Tensor
    fit: torch.Tensor
    puzzled: torch.Tensor


def detect(
    batches: Iterable[Batch],
    span: int,
    trained: int,
    catalogue: Catalogue,
    store: InterestStore,
    detector: DetectorConfig,
) -> tuple[Detection, Growth]:
    """NID: gives interests to the users whose items fit none of theirs (Eq. 13-14); collective.

    Args:
        batches: of the span's users with the items to look at, on this rank's device.
        span: the span at hand.
        trained: ids below it have been trained on; others count only where the detector's section says so.
        catalogue: the item table.
        store: the interests, which grow.
        detector: the section.

    Returns:
        What was found, and its account with what K_max refused.
    """
    found, grants, growth = [], [], Growth()
    for batch in batches:
        rows = batch.users - store.first_user
        items, *_ = catalogue.lookup(batch.history, batch.targets, batch.negatives)
        items, mask = pad(items, batch.history.lengths())
        if not detector.untrained:
            known = (batch.history.values() < trained).float().unsqueeze(1)
            mask &= pad(known, batch.history.lengths())[0].squeeze(-1) > 0
        interests, existing, _ = store.view(rows, span, items.device)
        # Those who got interests in this span before are not asked again.
        old = existing.any(1) & (existing == interests.mask).all(1)
        fits = user_fit(item_fit(Interests(interests.vectors, existing), items, detector), mask, detector)[old]
        one = Detection(batch.users[old], fits, fits < detector.c1)
        room = (detector.k_max - existing.sum(1)[old][one.puzzled]).clamp(0, detector.delta_k)
        told = fits[fits.isfinite()]
        growth.detected += len(told)
        growth.fit += told.sum().item()
        growth.fits.add(told)
        growth.puzzled += len(room)
        growth.created += room.sum().item()
        growth.refused += (detector.delta_k - room).sum().item()
        found.append(one)
        grants.append(room)
    nobody = Detection(*(torch.empty(0, dtype=kind) for kind in (torch.int64, torch.float32, torch.bool)))
    detection = Detection(*map(torch.cat, zip(*found, strict=True))) if found else nobody
    if found:
        store.expand(detection.users[detection.puzzled] - store.first_user, torch.cat(grants), span)
    order = detection.users.argsort()
    return Detection(*(column[order] for column in detection)), growth

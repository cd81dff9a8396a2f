"""Lines 1-11 of Algorithm 1: puzzled users get new interests."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torchrec import JaggedTensor

from dist_imsr.data.batch import Batch
from dist_imsr.data.dataset import Dataset
from dist_imsr.data.jagged import jagged, longest, pad
from dist_imsr.data.negatives import draw_by_counts
from dist_imsr.data.schedule import generator
from dist_imsr.distributed.catalogue import Catalogue
from dist_imsr.distributed.interest_store import InterestStore
from dist_imsr.model.detector import DetectorConfig, densest_items, item_fit, user_fit
from dist_imsr.model.interests import Interests
from dist_imsr.strategies.growth import Growth

_NULL = 14  # a stream of random numbers


class Detection(NamedTuple):
    """Results of the detector for users with existing interests.

    Args:
        users: ``[n]`` int64, ids.
        fit: ``[n]``, the number that is compared with c1; infinite or NaN for a user without items to measure.
        puzzled: ``[n]`` bool.
    """

    users: torch.Tensor
    fit: torch.Tensor
    puzzled: torch.Tensor

    def cpu(self) -> "Detection":
        """The same on the host."""
        return Detection(users=self.users.cpu(), fit=self.fit.cpu(), puzzled=self.puzzled.cpu())


def concatenate(detections: Sequence[Detection]) -> Detection:
    """Concatenates results that are on one device; empty for none."""
    if not detections:
        return Detection(
            users=torch.empty(0, dtype=torch.int64), fit=torch.empty(0), puzzled=torch.empty(0, dtype=torch.bool)
        )
    return Detection(
        users=torch.cat([one.users for one in detections]),
        fit=torch.cat([one.fit for one in detections]),
        puzzled=torch.cat([one.puzzled for one in detections]),
    )


def draw_null_items(dataset: Dataset, span: int, trained_items: int, count: int, seed: int) -> JaggedTensor:
    """Draws interactions of a span, whose items are those of other users to nearly every user.

    Args:
        dataset: the prepared data.
        span: the span.
        trained_items: only smaller ids are drawn.
        count: the number of draws, with repetition; none if no item of the span is trained.
        seed: of the run; with the span, the key of the draws.

    Returns:
        One sequence of ids on the host, the same on every rank.
    """
    items, interactions = dataset.item_counts(span)
    known = items < trained_items
    if not known.any():
        return jagged(np.empty(0, np.int64), [0])
    ends = interactions[known].cumsum()
    return jagged(draw_by_counts(generator(_NULL, seed, span), items[known], ends, count), [count])


def detect(
    batches: Iterable[Batch],
    span: int,
    trained_items: int,
    catalogue: Catalogue,
    store: InterestStore,
    detector: DetectorConfig,
    null: JaggedTensor,
) -> tuple[Detection, Growth]:
    """NID: expands the interests of users whose items fit none of them (Eq. 13-14); collective.

    Args:
        batches: the span's users with their items, on this rank's device.
        span: the span.
        trained_items: ids below it have been trained; others count only with ``detector.untrained``.
        catalogue: the item table.
        store: the interests; it is expanded.
        detector: the section.
        null: one sequence of other users' items, as `draw_null_items` draws them.

    Returns:
        The results in the order of users, and the statistics of created interests and of those that K_max refused.
    """
    detections, created, starts, growth = list[Detection](), list[torch.Tensor](), list[torch.Tensor](), Growth()
    [null_items] = catalogue.lookup(null)
    null_items = null_items[:, : catalogue.dim]
    for batch in batches:  # line 1
        rows = store.owned.rows(batch.users)
        items, *_ = catalogue.lookup(batch.history, batch.targets, batch.negatives)
        most = longest(batch.host.history)
        items, mask = pad(items[:, : catalogue.dim], batch.history, most)
        if not detector.untrained:
            trained = (batch.history.values() < trained_items).float().unsqueeze(1)
            mask &= pad(trained, batch.history, most)[0].squeeze(-1) > 0
        interests, existing, _ = store.view(rows, span, items.device)
        # Users whose interests were expanded in this span already are left out.
        candidates = existing.any(1) & (existing == interests.mask).all(1)
        item_fits = item_fit(Interests(interests.vectors, existing), items, detector, null_items)  # lines 2-4
        fit = user_fit(item_fits, mask, detector)[candidates]
        detection = Detection(users=batch.users[candidates], fit=fit, puzzled=fit < detector.c1)  # line 6
        existing_counts = existing.sum(1)[candidates][detection.puzzled]
        new_counts = (detector.k_max - existing_counts).clamp(0, detector.delta_k)  # line 7, up to K_max
        measured = fit[fit.isfinite()]
        growth.detected += len(measured)
        growth.fit += measured.sum().item()
        growth.fit_histogram.add(measured)
        growth.puzzled += len(new_counts)
        growth.created += new_counts.sum().item()
        growth.refused += (detector.delta_k - new_counts).sum().item()
        detections.append(detection)
        created.append(new_counts)
        if detector.start == "items":
            puzzling = ((item_fits < detector.c1) & mask)[candidates][detection.puzzled]
            starts.append(densest_items(items[candidates][detection.puzzled], puzzling, detector.delta_k))
    result = concatenate(detections)
    if created:
        puzzled_rows = store.owned.rows(result.users[result.puzzled])
        store.expand(puzzled_rows, torch.cat(created), span, torch.cat(starts) if starts else None)  # lines 8-11
    order = result.users.argsort()
    return Detection(users=result.users[order], fit=result.fit[order], puzzled=result.puzzled[order]), growth

"""A span together with replayed earlier sequences of its users (ADER)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torchrec import JaggedTensor

from dist_imsr.data.batch import Batch, BatchConfig
from dist_imsr.data.dataset import Dataset
from dist_imsr.data.jagged import concat_rows, jagged
from dist_imsr.data.schedule import ranges
from dist_imsr.data.span import SpanData
from dist_imsr.data.steps import Steps, TensorBatch

_POOL = 13  # a stream of random numbers


@dataclass
class Pool(TensorBatch):
    """The candidates for replay of U users.

    Args:
        new: U sequences of item ids, the training interactions of each user in the current span.
        history: P sequences of item ids of earlier spans, each up to its cut.
        owners: ``[P]`` int64, the user of each as an index among the U, ascending.
        places: ``[P]`` int64, the identifier of each for `ReplayedSpan.choose`.
    """

    new: JaggedTensor
    history: JaggedTensor
    owners: torch.Tensor
    places: torch.Tensor


class ReplayedSpan(SpanData):
    """One span, in which training replays chosen sequences of earlier spans in the steps of their users.

    The pool holds ``pool`` sequences of each user of the span and each earlier span, each cut at a random time; the
    interactions after the cut are its targets. A sequence is a triple (span, user, cut) that random keys determine, so
    the pool takes no space on disk. In memory it takes a few numbers for each sequence, besides the index of earlier
    spans, which grows with the number of their users.

    Args:
        dataset: the prepared data.
        span: the span.
        buckets: the buckets that this rank owns.
        config: sizes of batches.
        seed: of shuffles, cuts and negatives.
        world_sum: sums an int64 tensor over ranks.
        pool: the number of sequences of each user and earlier span.
    """

    def __init__(
        self,
        dataset: Dataset,
        span: int,
        buckets: range,
        config: BatchConfig,
        seed: int,
        world_sum: Callable[[torch.Tensor], torch.Tensor],
        pool: int,
    ) -> None:
        super().__init__(dataset=dataset, span=span, buckets=buckets, config=config, seed=seed, world_sum=world_sum)
        self.items_before, self.items = dataset.items_by_span[max(span - 1, 0)], dataset.items_by_span[span]
        self.block = max(1, config.eval_size // max(pool * span, 1))
        """The number of users in a global batch of `pools`."""
        self._parts = [
            SpanData(
                dataset=dataset,
                span=one,
                buckets=buckets,
                config=config,
                seed=seed,
                world_sum=world_sum,
                until=span,
            )
            for one in range(span if pool else 0)
        ]
        self._draw_pool(pool)
        self._chosen = np.zeros(len(self._owner), dtype=bool)

    def _draw_pool(self, pool: int) -> None:
        """Draws the sequences; each is a user here, an earlier span, the user's index there and a random cut."""
        owners, part_of, at, drawn = ([np.empty(0, dtype=np.int64)] for _ in range(4))
        for number, part in enumerate(self._parts):
            theirs = part.reader.find(self.users)
            mine = np.flatnonzero(self.trainees & (theirs >= 0))
            mine = mine[part.trainees[theirs[mine]]]
            theirs = theirs[mine]
            for one in range(pool):
                owners.append(mine)
                part_of.append(np.full(len(mine), number))
                at.append(theirs)
                drawn.append(part.draw(_POOL, self.seed, number, one)[theirs])
        order = np.concatenate(owners).argsort(kind="stable")
        self._part, self._at, self._drawn = (np.concatenate(column)[order] for column in (part_of, at, drawn))
        self._owner = np.concatenate(owners)[order]

    def pools(self) -> Steps[Pool]:
        """The pool of all users of the span.

        Returns:
            Batches of users, each with all of their sequences; collective when called.
        """
        counts = np.bincount(self._owner, minlength=len(self.users))
        first = counts.cumsum() - counts
        rows, schedule = self._schedule(counts > 0, self.block)

        def read(step: int) -> Pool:
            at = rows[schedule.places(step)]
            places = ranges(first[at], counts[at])
            return Pool(
                new=self.training_history(at),
                history=self._cut_pool(places)[0],
                owners=torch.from_numpy(np.arange(len(at)).repeat(counts[at])),
                places=torch.from_numpy(places),
            )

        return Steps(read, schedule.steps, self.config.prefetch)

    def choose(self, places: np.ndarray) -> None:
        """Adds sequences to those that `training` replays from its next call on.

        Args:
            places: ``[n]`` int64, identifiers of `Pool`.
        """
        self._chosen[places] = True

    def sequences(self) -> tuple[int, int]:
        """The numbers of replayed and of new sequences in an epoch, over all ranks; collective."""
        mine = torch.tensor([self._chosen.sum(), self.trainees.sum()])
        replayed, new = self._world_sum(mine).tolist()
        return replayed, new

    def training(self, epoch: int, extra_targets: np.ndarray | None = None) -> Steps[Batch]:
        """The steps of one epoch, as in `SpanData.training`; each user's chosen sequences are in the user's step."""
        chosen = self._chosen.nonzero()[0]
        extra, counts = (np.zeros(len(self.users), dtype=np.int64) for _ in range(2))
        for number, part in enumerate(self._parts):
            these = chosen[self._part[chosen] == number]
            np.add.at(extra, self._owner[these], part.count_targets(self._at[these], self._drawn[these]))
        np.add.at(counts, self._owner[chosen], 1)
        first = counts.cumsum() - counts
        steps = super().training(epoch, extra if extra_targets is None else extra + extra_targets)

        def read(step: int) -> Batch:
            batch = steps.read(step)
            rows = self.reader.find(batch.users.numpy())
            places = chosen[ranges(first[rows], counts[rows])]
            history, targets = self._cut_pool(places)
            own, replayed = batch.target_log_q, self.negatives.log_q(targets)
            return Batch(
                span=batch.span,
                users=torch.cat([batch.users, torch.from_numpy(self.users[self._owner[places]])]),
                history=_append_rows(batch.history, history),
                targets=_append_rows(batch.targets, targets),
                negatives=batch.negatives,
                world_targets=batch.world_targets,
                replayed=len(places),
                world_replayed=batch.world_replayed,
                target_log_q=None if own is None or replayed is None else torch.cat([own, replayed]),
                negative_log_q=batch.negative_log_q,
            )

        return Steps(read, len(steps), self.config.prefetch)

    def _cut_pool(self, places: np.ndarray) -> tuple[JaggedTensor, JaggedTensor]:
        """Histories and targets of sequences of the pool, which must be sorted by bucket."""
        pieces: tuple[list[tuple[np.ndarray, np.ndarray]], ...] = ([], [])
        for number, part in enumerate(self._parts):
            these = (self._part[places] == number).nonzero()[0]
            at = places[these]
            for one, sequences in zip(pieces, part.cut(self._at[at], self._drawn[at]), strict=True):
                lengths = np.zeros(len(places), dtype=np.int64)
                lengths[these] = sequences.lengths().numpy()
                one.append((sequences.values().numpy(), lengths))
        empty = np.empty(0, dtype=np.int64), np.zeros(len(places), dtype=np.int64)
        history, targets = (concat_rows([empty, *one]) for one in pieces)
        return history, targets


def _append_rows(first: JaggedTensor, second: JaggedTensor) -> JaggedTensor:
    return jagged(
        torch.cat([first.values(), second.values()]).numpy(), torch.cat([first.lengths(), second.lengths()]).numpy()
    )

"""A span beside earlier sequences of its users, which are replayed."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torchrec import JaggedTensor

from dist_imsr.data.batch import Batch, BatchConfig
from dist_imsr.data.dataset import Dataset
from dist_imsr.data.jagged import appended, jagged
from dist_imsr.data.schedule import ranges
from dist_imsr.data.span import SpanData
from dist_imsr.data.steps import Movable, Steps

_POOL = 13  # a stream of random numbers


@dataclass
class Pool(Movable):
    """Some users' sequences, of which some are to be chosen.

    Args:
        new: U sequences of item ids, what each user may be trained on in the span.
        history: P sequences of item ids of earlier spans, up to where they are cut.
        owners: ``[P]`` int64, whose they are: places among the U, ascending.
        places: ``[P]`` int64, what `ReplayedSpan.choose` calls them.
    """

    new: JaggedTensor
    history: JaggedTensor
    owners: torch.Tensor
    places: torch.Tensor


class ReplayedSpan(SpanData):
    """One span, each of whose users brings chosen sequences of earlier spans along when trained on.

    The pool holds ``pool`` sequences of each user and earlier span, each truncated at a random time; what comes after
    it is its targets. They are places in the files (span, user, cut), which keys draw, so that the pool has no bytes of
    its own on disk. In memory it is a place each for the users of the span at hand, beside the index of earlier spans,
    which follows the number of their users.

    Args:
        dataset: the prepared data.
        span: which span.
        buckets: the buckets that this rank owns.
        config: the batches' section.
        seed: keys shuffles, cuts and negatives.
        world_sum: sums an int64 tensor over ranks.
        pool: sequences of each user and span.
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
        super().__init__(dataset, span, buckets, config, seed, world_sum)
        self.items_before, self.items = dataset.items_by_span[max(span - 1, 0)], dataset.items_by_span[span]
        self.block = max(1, config.eval_size // max(pool * span, 1))
        """Users in a global block of `pools`."""
        self._parts = [
            SpanData(dataset, one, buckets, config, seed, world_sum, until=span) for one in range(span if pool else 0)
        ]
        owners, of_part, at, drawn = ([np.empty(0, dtype=np.int64)] for _ in range(4))
        for number, part in enumerate(self._parts):
            _, mine, theirs = np.intersect1d(self.users, part.users, assume_unique=True, return_indices=True)
            both = self.trainees[mine] & part.trainees[theirs]
            mine, theirs = mine[both], theirs[both]
            for one in range(pool):
                owners.append(mine)
                of_part.append(np.full(len(mine), number))
                at.append(theirs)
                drawn.append(part.drawn(_POOL, seed, number, one)[theirs])
        order = np.concatenate(owners).argsort(kind="stable")
        self._part, self._at, self._drawn = (np.concatenate(column)[order] for column in (of_part, at, drawn))
        self._owner = np.concatenate(owners)[order]
        self._chosen = np.zeros(len(order), dtype=bool)

    def pools(self) -> Steps[Pool]:
        """The pool of all users of the span who have one.

        Returns:
            Blocks of users, each with all sequences of its users; collective when called.
        """
        held = np.bincount(self._owner, minlength=len(self.users))
        first = held.cumsum() - held
        rows, schedule = self._select(held > 0, self.block)

        def read(step: int) -> Pool:
            at = rows[schedule.places(step)]
            places = ranges(first[at], held[at])
            return Pool(
                new=self.learnt(at),
                history=self._cut(places)[0],
                owners=torch.from_numpy(np.arange(len(at)).repeat(held[at])),
                places=torch.from_numpy(places),
            )

        return Steps(read, schedule.steps, self.config.prefetch)

    def choose(self, places: np.ndarray) -> None:
        """Has sequences replayed from the next call of `training` on.

        Args:
            places: ``[n]`` int64, as `Pool` calls them.
        """
        self._chosen[places] = True

    def sequences(self) -> tuple[int, int]:
        """How many sequences an epoch has, over all ranks; collective.

        Returns:
            Replayed ones, and new ones.
        """
        mine = torch.tensor([self._chosen.sum(), self.trainees.sum()])
        replayed, new = self._world_sum(mine).tolist()
        return replayed, new

    def training(self, epoch: int, beside: np.ndarray | None = None) -> Steps[Batch]:
        """The steps of one epoch, as of the span alone; each user's chosen sequences stand in the user's step.

        Args:
            epoch: keys the shuffle, the cuts and the negatives.
            beside: as of `SpanData.training`.

        Returns:
            The batches; collective when called, not when read.
        """
        chosen = self._chosen.nonzero()[0]
        more, held = (np.zeros(len(self.users), dtype=np.int64) for _ in range(2))
        for number, part in enumerate(self._parts):
            these = chosen[self._part[chosen] == number]
            np.add.at(more, self._owner[these], part.targets(self._at[these], self._drawn[these]))
        np.add.at(held, self._owner[chosen], 1)
        first = held.cumsum() - held
        steps = super().training(epoch, more if beside is None else more + beside)

        def read(step: int) -> Batch:
            batch = steps.read(step)
            rows = np.searchsorted(self.users, batch.users.numpy())
            places = chosen[ranges(first[rows], held[rows])]
            history, targets = self._cut(places)
            return Batch(
                span=batch.span,
                users=torch.cat([batch.users, torch.from_numpy(self.users[self._owner[places]])]),
                history=_after(batch.history, history),
                targets=_after(batch.targets, targets),
                negatives=batch.negatives,
                world_targets=batch.world_targets,
                replayed=len(places),
                world_replayed=batch.world_replayed,
            )

        return Steps(read, len(steps), self.config.prefetch)

    def _cut(self, places: np.ndarray) -> tuple[JaggedTensor, JaggedTensor]:
        """Histories and targets of sequences in the pool, bucket after bucket."""
        pieces: tuple[list[tuple[np.ndarray, np.ndarray]], ...] = ([], [])
        for number, part in enumerate(self._parts):
            these = (self._part[places] == number).nonzero()[0]
            at = places[these]
            for one, sequences in zip(pieces, part.cut(self._at[at], self._drawn[at]), strict=True):
                lengths = np.zeros(len(places), dtype=np.int64)
                lengths[these] = sequences.lengths().numpy()
                one.append((sequences.values().numpy(), lengths))
        empty = np.empty(0, dtype=np.int64), np.zeros(len(places), dtype=np.int64)
        history, targets = (appended([empty, *one]) for one in pieces)
        return history, targets


def _after(first: JaggedTensor, second: JaggedTensor) -> JaggedTensor:
    return jagged(
        torch.cat([first.values(), second.values()]).numpy(), torch.cat([first.lengths(), second.lengths()]).numpy()
    )

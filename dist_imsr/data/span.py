"""The batches of one span, read straight from its Arrow files."""

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from torchrec import JaggedTensor

from dist_imsr.data.batch import Batch, BatchConfig, TestBatch
from dist_imsr.data.dataset import Dataset
from dist_imsr.data.held_out import held_out
from dist_imsr.data.jagged import jagged
from dist_imsr.data.negatives import NegativeSampler
from dist_imsr.data.reader import SpanReader
from dist_imsr.data.schedule import Schedule, generator
from dist_imsr.data.steps import Steps, chain_steps
from dist_imsr.phases import Phase

_SHUFFLE, _CUT, _NEGATIVES, _VALIDATION, _TEST = 1, 2, 3, 7, 12  # streams of random numbers


class SpanData:
    """One span of the users that a rank owns.

    Methods that return `Steps` are collective when called; reading the steps is not. In arguments, ``at`` holds indices
    ``[B]`` of users among `users`, sorted by bucket.

    Args:
        dataset: the prepared data.
        span: the span.
        buckets: the buckets that this rank owns.
        config: sizes of batches.
        seed: of shuffles, cuts and negatives.
        world_sum: sums an int64 tensor over ranks.
        earlier: the spans before it, from the first on, if histories continue into them.
        until: the latest known span, if it is later than ``span``: nothing is held out of ``span`` then, and negatives
            are drawn from the items known by the end of ``until``.
    """

    def __init__(
        self,
        dataset: Dataset,
        span: int,
        buckets: range,
        config: BatchConfig,
        seed: int,
        world_sum: Callable[[torch.Tensor], torch.Tensor],
        earlier: "Sequence[SpanData]" = (),
        until: int | None = None,
    ) -> None:
        self.span, self.config, self.seed = span if until is None else until, config, seed
        self._own_span, self._buckets, self._world_sum = span, buckets, world_sum
        self._dataset, self._known_items = dataset, dataset.items_by_span[self.span]
        self.reader = SpanReader(dataset, span, buckets)
        self._earlier = [one.reader for one in earlier]
        self.users, self._lengths = self.reader.users, self.reader.lengths
        self._trained = self._lengths - (held_out(self._lengths) if span == self.span else 0)

    @property
    def trainees(self) -> np.ndarray:
        """Which users have at least 2 interactions to train on, ``[n]`` bool."""
        return self._trained >= 2

    @cached_property
    def negatives(self) -> NegativeSampler:
        """Draws the negatives of its steps."""
        size, popular = self.config.negatives, self.config.popular_negatives
        return NegativeSampler(self._dataset, self._own_span, self._known_items, size, popular)

    def draw(self, *keys: int) -> np.ndarray:
        """Draws a uniform number for each user.

        Args:
            keys: of the random generator; the number of the bucket is appended.

        Returns:
            ``[n]`` in [0, 1).
        """
        sizes = np.bincount(self.reader.bucket, minlength=len(self._buckets))
        return Schedule(self._buckets, sizes, users=0, batch=1).draw(np.random.Generator.random, *keys)

    def cut(self, at: np.ndarray, drawn: np.ndarray) -> tuple[JaggedTensor, JaggedTensor]:
        """Cuts sequences at random times.

        Args:
            at: users with at least 2 interactions to train on.
            drawn: ``[B]`` in [0, 1), the relative position of each cut.

        Returns:
            Histories, and the targets that follow them.
        """
        cuts = self._cuts(at, drawn)
        return self._history(at, cuts), self.reader.items(at, cuts, self._targets_after(at, cuts))

    def count_targets(self, at: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """The number of targets that `cut` returns for each user, ``[B]`` int64."""
        return self._targets_after(at, self._cuts(at, drawn))

    @Phase("data")
    def training(self, epoch: int, extra_targets: np.ndarray | None = None) -> Steps[Batch]:
        """The steps of one epoch of training: users in random order, each sequence cut at a random time.

        Args:
            epoch: together with the seed, the key of the order, the cuts and the negatives.
            extra_targets: ``[n]``, the number of replayed targets that each user adds to the user's step.

        Returns:
            The batches of users with at least 2 interactions to train on.
        """
        rows, schedule = self._schedule(self.trainees, self.config.size)
        keys = [self.seed, self.span, epoch]
        if self._own_span != self.span:
            keys.append(self._own_span)
        drawn = schedule.draw(np.random.Generator.random, _CUT, *keys)
        order = schedule.shuffle(_SHUFFLE, *keys)
        rows, drawn = rows[order], drawn[order]
        counts = self.count_targets(rows, drawn), np.zeros(len(rows)) if extra_targets is None else extra_targets[rows]
        step_of = schedule.step_of_places()
        per_step = [np.bincount(step_of, targets, minlength=schedule.steps) for targets in counts]
        own, extra = self._world_sum(torch.from_numpy(np.stack(per_step).astype(np.int64))).tolist()

        def read(step: int) -> Batch:
            places = schedule.places(step)
            history, targets = self.cut(rows[places], drawn[places])
            drawn_items = self.negatives.draw(generator(_NEGATIVES, *keys, step))
            negatives = jagged(drawn_items, np.array([len(drawn_items)]))
            return Batch(
                span=self.span,
                users=torch.from_numpy(self.users[rows[places]]),
                history=history,
                targets=targets,
                negatives=negatives,
                world_targets=own[step] + extra[step],
                world_replayed=extra[step],
                target_log_q=self.negatives.log_q(targets),
                negative_log_q=self.negatives.log_q(negatives),
            )

        return Steps(read, schedule.steps, self.config.prefetch)

    def validation(self, max_users: int) -> Steps[Batch]:
        """The validation target of each user, the second last interaction, with the training interactions as history.

        Args:
            max_users: the approximate size of the sample of users, which is the same in every epoch.
        """
        chosen = self._sample(self._trained < self._lengths, max_users, _VALIDATION, self.seed)
        return self._sweep(chosen, self._trained, targets=1)

    def held_out_items(self) -> np.ndarray:
        """The items of all interactions that are held out of training, ``[n]`` int64."""
        at = np.arange(len(self.users))
        return self.reader.read("items", at, self._trained, self._lengths - self._trained).astype(np.int64)

    def training_history(self, at: np.ndarray) -> JaggedTensor:
        """The latest training interactions of users."""
        return self._history(at, self._trained[at])

    def trainable(self) -> Steps[Batch]:
        """All users with their latest training interactions, without targets; for detecting new interests."""
        return self._sweep(self._trained > 0, self._trained, targets=0)

    def everything(self, exclude: np.ndarray | None = None) -> Steps[Batch]:
        """All users with their latest interactions, held-out ones included, without targets; for write-back.

        Args:
            exclude: ids of users to leave out.
        """
        chosen = self._lengths > 0
        if exclude is not None:
            chosen &= ~np.isin(self.users, exclude)
        return self._sweep(chosen, self._lengths, targets=0)

    def pieces(self) -> Steps[Batch]:
        """All users with all of their interactions, in consecutive pieces of ``max_history``, without targets.

        Returns:
            Batches with the first pieces of all users, then batches with their second pieces, and so on.
        """
        sweeps = list[Steps[Batch]]()
        while True:
            begin = len(sweeps) * self.config.max_history
            cut = np.minimum(self._lengths, begin + self.config.max_history)
            sweep = self._sweep(self._lengths > begin, cut, targets=0, begin=begin)
            if not len(sweep):  # on all ranks
                break
            sweeps.append(sweep)
        return chain_steps([(steps, step) for steps in sweeps for step in range(len(steps))], self.config.prefetch)

    @Phase("data")
    def testing(self, known: Callable[[np.ndarray], np.ndarray], max_users: int | None = None) -> Steps[TestBatch]:
        """The test targets of users who are known from earlier spans.

        Args:
            known: takes user ids ``[n]`` and returns which of them are known, ``[n]`` bool.
            max_users: the approximate size of a sample of users, which does not depend on the seed; all by default.
        """
        chosen = (self._trained < self._lengths) & known(self.users)
        rows, schedule = self._schedule(self._sample(chosen, max_users, _TEST), self.config.eval_size)

        def read(step: int) -> TestBatch:
            at = rows[schedule.places(step)]
            first, lengths = np.zeros_like(at), self._lengths[at]
            items = self.reader.read("items", at, first, lengths)
            met = self.reader.read("met_before", at, first, lengths)
            owner = np.arange(len(at)).repeat(lengths)
            distinct, place = np.unique(owner * (self._known_items + 1) + items, return_inverse=True)
            final = lengths.cumsum() - 1
            owner, items = np.divmod(distinct, self._known_items + 1)
            return TestBatch(
                users=torch.from_numpy(self.users[at]),
                targets=jagged(items, np.bincount(owner, minlength=len(at))),
                last=torch.from_numpy(place[final]),
                last_is_new=torch.from_numpy(~met[final]),
            )

        return Steps(read, schedule.steps, self.config.prefetch)

    @Phase("data")
    def _sweep(self, chosen: np.ndarray, cut: np.ndarray, targets: int, begin: int = 0) -> Steps[Batch]:
        """Each chosen user once: history before ``cut [n]``, and the next ``targets`` interactions."""
        rows, schedule = self._schedule(chosen, self.config.eval_size)
        # Batches of users with similar lengths need little padding.
        lengths = np.minimum(cut[rows] - begin, self.config.max_history)
        rows = rows[np.lexsort((lengths, self.reader.bucket[rows]))]
        cuts = cut[rows]

        def read(step: int) -> Batch:
            places = schedule.places(step)
            at, ends = rows[places], cuts[places]
            return Batch(
                span=self.span,
                users=torch.from_numpy(self.users[at]),
                history=self._history(at, ends, begin),
                targets=self.reader.items(at, ends, np.full(len(at), targets)),
                negatives=jagged(np.empty(0), np.zeros(1)),
                world_targets=0,
            )

        return Steps(read, schedule.steps, self.config.prefetch)

    def _cuts(self, at: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        return 1 + (drawn * (self._trained[at] - 1)).astype(np.int64)

    def _targets_after(self, at: np.ndarray, cuts: np.ndarray) -> np.ndarray:
        return np.minimum(self._trained[at] - cuts, self.config.max_targets)

    def _history(self, at: np.ndarray, cut: np.ndarray, begin: int = 0) -> JaggedTensor:
        return self.reader.history(at, cut, self.config.max_history, begin, self._earlier)

    def _schedule(self, chosen: np.ndarray, batch: int) -> tuple[np.ndarray, Schedule]:
        """Indices of the chosen users in this span, and the schedule of the chosen users of all ranks."""
        sizes = np.bincount(self.reader.bucket[chosen], minlength=len(self._buckets))
        in_world = int(self._world_sum(torch.tensor([sizes.sum()])))
        return chosen.nonzero()[0], Schedule(self._buckets, sizes, in_world, batch)

    def _sample(self, chosen: np.ndarray, max_users: int | None, *keys: int) -> np.ndarray:
        """A random part of the chosen users, about ``max_users`` over all ranks."""
        if max_users is None:
            return chosen
        rows, schedule = self._schedule(chosen, self.config.eval_size)
        if schedule.users <= max_users:
            return chosen
        sample = np.zeros_like(chosen)
        sample[rows] = schedule.draw(np.random.Generator.random, *keys, self.span) * schedule.users < max_users
        return sample

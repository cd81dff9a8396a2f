"""One span's batches, straight from its Arrow files."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torchrec import JaggedTensor

from dist_imsr.data.batch import Batch, BatchConfig, TestBatch
from dist_imsr.data.dataset import Dataset, held_out
from dist_imsr.data.jagged import appended, jagged
from dist_imsr.data.schedule import Schedule, generator, ranges
from dist_imsr.data.steps import Steps, one_by_one
from dist_imsr.phases import Phase

_SHUFFLE, _CUT, _NEGATIVES, _VALIDATION, _TESTED = 1, 2, 3, 7, 12  # streams of random numbers


class SpanData:
    """One span of the users that a rank owns.

    Memory follows the number of these users; their interactions stay on disk until a batch wants them.

    Args:
        dataset: the prepared data.
        span: which span.
        buckets: the buckets that this rank owns.
        config: the batches' section.
        seed: keys shuffles, cuts and negatives.
        world_sum: sums an int64 tensor over ranks.
        earlier: the spans before it whose interactions a user's history goes on in, from the first.
        until: the span at hand, if it is a later one: nothing is held out, and its items are the known ones.
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
        self._of, self._earlier = span, earlier
        self._buckets, self._world_sum = buckets, world_sum
        self._known_items = dataset.items_by_span[self.span]
        self._sequences = [dataset.sequences(span, bucket) for bucket in buckets]
        sizes = [len(sequences.users) for sequences in self._sequences]
        self._bucket = np.arange(len(buckets)).repeat(sizes)  # [n], which of the buckets at hand
        self.users = np.concatenate([sequences.users for sequences in self._sequences]).astype(np.int64)
        self._starts = np.concatenate([sequences.offsets[:-1] for sequences in self._sequences]).astype(np.int64)
        self._lengths = np.concatenate([np.diff(sequences.offsets) for sequences in self._sequences]).astype(np.int64)
        self._trained = self._lengths - (held_out(self._lengths) if span == self.span else 0)

    @property
    def trainees(self) -> np.ndarray:
        """Which users have at least 2 interactions to train on, ``[n]`` bool."""
        return self._trained >= 2

    def drawn(self, *keys: int) -> np.ndarray:
        """Draws a number for every user.

        Args:
            keys: of the draw; the bucket's number is added.

        Returns:
            ``[n]`` in [0, 1).
        """
        sizes = np.bincount(self._bucket, minlength=len(self._buckets))
        return Schedule(self._buckets, sizes, 0, 1).drawn(np.random.Generator.random, *keys)

    def cut(self, at: np.ndarray, drawn: np.ndarray) -> tuple[JaggedTensor, JaggedTensor]:
        """Cuts sequences at random times.

        Args:
            at: ``[B]``, places of trainees among the users, bucket after bucket.
            drawn: ``[B]`` in [0, 1), where each is cut.

        Returns:
            Histories, and what comes after them.
        """
        cuts = self._cuts(at, drawn)
        return self._history(at, cuts), self._items(at, cuts, self._following(at, cuts))

    def targets(self, at: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """How many targets `cut` leaves.

        Args:
            at: as for `cut`.
            drawn: as for `cut`.

        Returns:
            ``[B]`` int64.
        """
        return self._following(at, self._cuts(at, drawn))

    @Phase("data")
    def training(self, epoch: int, beside: np.ndarray | None = None) -> Steps[Batch]:
        """The steps of one epoch of training: users shuffled, each cut at a random time.

        Args:
            epoch: keys the shuffle, the cuts and the negatives.
            beside: ``[n]``, how many more targets each user brings to the step.

        Returns:
            The batches of users with at least 2 interactions to train on; collective when called, not when read.
        """
        rows, schedule = self._select(self.trainees, self.config.size)
        keys = (self.seed, self.span, epoch) if self._of == self.span else (self.seed, self.span, epoch, self._of)
        drawn = schedule.drawn(np.random.Generator.random, _CUT, *keys)
        order = schedule.shuffled(_SHUFFLE, *keys)
        rows, drawn = rows[order], drawn[order]
        of_users = self.targets(rows, drawn), np.zeros(len(rows)) if beside is None else beside[rows]
        place = schedule.step_of_places()
        of_steps = [np.bincount(place, targets, minlength=schedule.steps) for targets in of_users]
        own, more = self._world_sum(torch.from_numpy(np.stack(of_steps).astype(np.int64))).tolist()

        def read(step: int) -> Batch:
            places = schedule.places(step)
            negatives = generator(_NEGATIVES, *keys, step).integers(self._known_items, size=self.config.negatives)
            history, targets = self.cut(rows[places], drawn[places])
            return Batch(
                span=self.span,
                users=torch.from_numpy(self.users[rows[places]]),
                history=history,
                targets=targets,
                negatives=jagged(negatives, np.array([len(negatives)])),
                world_targets=own[step] + more[step],
                world_replayed=more[step],
            )

        return Steps(read, schedule.steps, self.config.prefetch)

    def validation(self, most: int) -> Steps[Batch]:
        """Users with a validation target: their second last interaction, after the history that trains.

        Args:
            most: about so many of them, the same ones in every epoch, where there are more.

        Returns:
            Batches of one target for each user; collective when called.
        """
        chosen = self._sample(self._trained < self._lengths, most, _VALIDATION, self.seed)
        return self._sweep(chosen, self._trained, targets=1)

    def learnt(self, at: np.ndarray) -> JaggedTensor:
        """The latest of the interactions that may be learnt from.

        Args:
            at: ``[B]``, places among the users, bucket after bucket.

        Returns:
            Histories.
        """
        return self._history(at, self._trained[at])

    def trainable(self) -> Steps[Batch]:
        """All users with the interactions of the span that may be learnt from, for detecting what is new in them.

        Returns:
            Batches without targets; collective when called.
        """
        return self._sweep(self._trained > 0, self._trained, targets=0)

    def everything(self, but: np.ndarray | None = None) -> Steps[Batch]:
        """All users of the span with all they did in it, for writing interests back.

        Args:
            but: dense ids of users who are left out.

        Returns:
            Batches without targets; collective when called.
        """
        chosen = self._lengths > 0
        if but is not None:
            chosen &= ~np.isin(self.users, but)
        return self._sweep(chosen, self._lengths, targets=0)

    def pieces(self) -> Steps[Batch]:
        """All users of the span with all they did in it, ``max_history`` interactions after the other.

        Returns:
            Batches without targets, all users' first pieces before all their second ones, and each user once among the
            pieces of a number; collective when called.
        """
        each = list[Steps[Batch]]()
        while True:
            begin = len(each) * self.config.max_history
            cut = np.minimum(self._lengths, begin + self.config.max_history)
            sweep = self._sweep(self._lengths > begin, cut, targets=0, begin=begin)
            if not len(sweep):  # on all ranks
                break
            each.append(sweep)
        return one_by_one([(steps, step) for steps in each for step in range(len(steps))], self.config.prefetch)

    @Phase("data")
    def testing(self, known: Callable[[np.ndarray], np.ndarray], most: int | None = None) -> Steps[TestBatch]:
        """Users with a test target who were met before.

        Args:
            known: says of dense user ids ``[n]`` whether they were; nobody can rank for the others.
            most: about so many of them, where there are more, the same ones for every seed of a run; all without it.

        Returns:
            Batches of test targets; collective when called.
        """
        chosen = (self._trained < self._lengths) & known(self.users)
        rows, schedule = self._select(self._sample(chosen, most, _TESTED), self.config.eval_size)

        def read(step: int) -> TestBatch:
            at = rows[schedule.places(step)]
            lengths = self._lengths[at]
            items = self._take("items", at, self._starts[at], lengths)
            met = self._take("met_before", at, self._starts[at], lengths)
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
        rows, schedule = self._select(chosen, self.config.eval_size)
        # Users of about equally long histories share a batch: most of it would be padding else.
        lengths = np.minimum(cut[rows] - begin, self.config.max_history)
        rows = rows[np.lexsort((lengths, self._bucket[rows]))]
        cuts = cut[rows]

        def read(step: int) -> Batch:
            places = schedule.places(step)
            at, ends = rows[places], cuts[places]
            return Batch(
                span=self.span,
                users=torch.from_numpy(self.users[at]),
                history=self._history(at, ends, begin),
                targets=self._items(at, ends, np.full(len(at), targets)),
                negatives=jagged(np.empty(0), np.zeros(1)),
                world_targets=0,
            )

        return Steps(read, schedule.steps, self.config.prefetch)

    def _cuts(self, at: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        return 1 + (drawn * (self._trained[at] - 1)).astype(np.int64)

    def _following(self, at: np.ndarray, cuts: np.ndarray) -> np.ndarray:
        return np.minimum(self._trained[at] - cuts, self.config.max_targets)

    def _select(self, chosen: np.ndarray, batch: int) -> tuple[np.ndarray, Schedule]:
        """Places of the chosen users in this span, and the world's schedule over them."""
        sizes = np.bincount(self._bucket[chosen], minlength=len(self._buckets))
        in_world = int(self._world_sum(torch.tensor([sizes.sum()])))
        return chosen.nonzero()[0], Schedule(self._buckets, sizes, in_world, batch)

    def _sample(self, chosen: np.ndarray, most: int | None, *keys: int) -> np.ndarray:
        """Some of the chosen users, about so many of the world's."""
        if most is None:
            return chosen
        rows, schedule = self._select(chosen, self.config.eval_size)
        if schedule.users <= most:
            return chosen
        sample = np.zeros_like(chosen)
        sample[rows] = schedule.drawn(np.random.Generator.random, *keys, self.span) * schedule.users < most
        return sample

    def _history(self, at: np.ndarray, cut: np.ndarray, begin: int = 0) -> JaggedTensor:
        """The latest interactions before each cut, going back into earlier spans where there are any at hand."""
        first = np.maximum(cut - self.config.max_history, begin)
        pieces = [(self._take("items", at, self._starts[at] + first, cut - first), cut - first)]
        left = self.config.max_history - (cut - first)
        for part in reversed(self._earlier):
            pieces.insert(0, part._latest(self.users[at], left))
            left = left - pieces[0][1]
        return appended(pieces)

    def _latest(self, users: np.ndarray, most: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The latest items of users, ``most`` of each at most: the items, and how many each has."""
        if not len(self.users):
            return np.empty(0, dtype=np.int64), np.zeros_like(most)
        at = np.searchsorted(self.users, users).clip(max=len(self.users) - 1)
        taken = np.minimum(self._lengths[at] * (self.users[at] == users), most)
        return self._take("items", at, self._starts[at] + self._lengths[at] - taken, taken), taken

    def _items(self, at: np.ndarray, first: np.ndarray, lengths: np.ndarray) -> JaggedTensor:
        return jagged(self._take("items", at, self._starts[at] + first, lengths), lengths)

    def _take(self, column: str, at: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Reads ranges of a column; ``at`` keeps buckets apart, so that each file is read once."""
        flat = ranges(starts, lengths)
        ends = np.bincount(self._bucket[at], lengths, minlength=len(self._buckets)).cumsum().astype(np.int64)
        begins = np.concatenate([[0], ends[:-1]])
        return np.concatenate(
            [
                getattr(self._sequences[bucket], column)[flat[begins[bucket] : ends[bucket]]]
                for bucket in np.flatnonzero(begins < ends)
            ]
            or [np.empty(0, bool)]
        )

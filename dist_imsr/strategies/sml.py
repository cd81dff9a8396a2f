"""SML: parameters are tuned through a transfer from those of the span before, and the transfer learns from the next."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torchrec import JaggedTensor

from dist_imsr.checks import require
from dist_imsr.data.steps import Follow
from dist_imsr.distributed.frozen_model import FrozenModel
from dist_imsr.distributed.rows import ShardRows
from dist_imsr.model.extractors import Extractor
from dist_imsr.model.interests import Interests, Start
from dist_imsr.model.scoring import sampled_softmax
from dist_imsr.model.transfer import Transfer
from dist_imsr.strategies.base import Strategy
from dist_imsr.strategies.companion import Companion, Forward

_KINDS = ("item", "dense", "interest")
_EPOCHS = 1 << 20  # what keys the transfer's epochs: far from those of the tuned parameters
_SEED = 0x5317


@dataclass
class SMLConfig:
    """The transfer module, and how it learns.

    Args:
        filters: convolutions over the stacked parameters.
        kernel: their width, odd.
        hidden: units of the hidden layer.
        epochs: for which the transfer learns from each span; 0 leaves it as it was built.
        learning_rate: of the transfer, under Adam.
        chunk: rows of the table that go through the transfer at a time.
    """

    filters: int = 5
    kernel: int = 5
    hidden: int = 80
    epochs: int = 2
    learning_rate: float = 1e-4
    chunk: int = 16384

    def __post_init__(self) -> None:
        for key, least in {"filters": 1, "hidden": 1, "epochs": 0, "chunk": 1}.items():
            require(getattr(self, key) >= least, f"strategy.sml.{key}", getattr(self, key), f"at least {least}")
        odd = self.kernel >= 3 and self.kernel % 2 == 1
        require(odd, "strategy.sml.kernel", self.kernel, "an odd number of at least 3")
        require(self.learning_rate > 0, "strategy.sml.learning_rate", self.learning_rate, "above 0")


def sml(config: SMLConfig) -> Strategy:
    """Tunes w^_t on a span through the transfer w_t = f(w_{t-1}, w^_t), which learnt from the spans before.

    "How to Retrain Recommender System? A Sequential Meta-Learning Method" (SIGIR 2020). When span t arrives, the
    transfer first learns from it, with w^_{t-1} and w_{t-2} fixed, and w_{t-1} is made again; M^{t-1} was tested on it
    before. Then w^_t is tuned from w_{t-1} on, with the transfer fixed. Three transfers of one shape serve item rows,
    rows of dense weights, and existing interests; new interests and ComiRec-SA's queries are those of fine-tuning.

    Cost per span: that of fine-tuning; the transfer of each step's distinct items and of the dense weights, forward and
    back; its own epochs over the span; a pass of the whole table through it, in chunks, for each validation and twice
    for the span; two more tables without optimizer state, which checkpoints hold as well.

    Args:
        config: the strategy's section.

    Returns:
        The strategy.
    """
    return Strategy(companion=lambda: MetaLearner(config))


class MetaLearner(Companion):
    """The transfers, with w_{t-1} and w^_t.

    Between spans the live model is w_t, and w^_t is kept. While a span is trained the live model is w^_t, and is seen
    through the transfer.

    Args:
        config: the strategy's section.
    """

    transfers: nn.ModuleDict
    previous: FrozenModel
    tuned: FrozenModel

    def __init__(self, config: SMLConfig) -> None:
        self.config = config
        self._training = self._through = self._learning = False

    def wrap(self, extractor: Extractor) -> Extractor:
        """The extractor, whose weights can be seen through the transfer."""
        self._dense = _Seen(extractor)
        return self._dense

    def wake(self) -> None:
        """Copies the model, and builds the transfers for rows of its scale."""
        catalogue, store, topology = self.parts.catalogue, self.parts.store, self.parts.topology
        self.previous, self.tuned = (FrozenModel(catalogue, self._dense, topology.rank == 0) for _ in range(2))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            shape = catalogue.dim, self.config.filters, self.config.kernel, self.config.hidden
            self.transfers = nn.ModuleDict({kind: Transfer(*shape) for kind in _KINDS}).to(topology.device)
        self.transfers.requires_grad_(False)
        dense = torch.cat([weight.detach().flatten() for weight in self._dense.parameters()])
        scales = {
            "item": topology.sum(_moments(catalogue.flushed_state()["weight"].values)),
            "dense": _moments(dense),
            "interest": topology.sum(_moments(store.values[store.birth_span == 0])),  # what is trained already
        }
        for kind, (square, count) in scales.items():
            if square > 0:
                self._of(kind).scale.fill_((square / count).sqrt().item())
        self.awake = True

    def begin(self, data: Any, forward: Forward, follow: Follow, fresh: bool) -> None:
        """Teaches the transfer from the span what its model before should have become, then fixes it."""
        if fresh:
            if data.span > 1 and self.config.epochs:  # else nothing was tuned before, or nothing new is known of it
                self._put()
                self._look(True)
                self._learn(data, forward, follow)
                self._transfer()
            self.previous.copy_from_live()
        self._training = True
        self._look(True)

    def start_lookup(self, *sequences: JaggedTensor) -> None:
        """As for a table that is not seen through the transfer; else `lookup` asks for other sequences."""
        if not self._through:
            super().start_lookup(*sequences)

    def lookup(self, *sequences: JaggedTensor) -> list[torch.Tensor]:
        """Embeddings; each distinct item goes through the transfer once."""
        if not self._through:
            return super().lookup(*sequences)
        values = torch.cat([sequence.values() for sequence in sequences])
        distinct, place = values.unique(return_inverse=True)
        asked = JaggedTensor(distinct, lengths=torch.tensor([len(distinct)], device=distinct.device))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._learning):
            [tuned] = self.parts.catalogue.lookup(asked)
        with torch.no_grad():
            [previous] = self.previous.table.lookup(asked)
        rows = self._of("item")(previous, tuned)[place]
        return list(rows.split([len(sequence.values()) for sequence in sequences]))

    def dense(self, items: torch.Tensor, mask: torch.Tensor, start: Start) -> Interests:
        """The forward pass, past DeepSpeed where it is the transfer that learns."""
        if not self._learning:
            return super().dense(items, mask, start)
        with self.parts.engine.precision():
            return self._dense(items, mask, start)

    def revise(self, interests: Interests, start: Start, existing: torch.Tensor) -> Interests:
        """Existing interests through the transfer, from the stored ones and those extracted."""
        if not self.awake:
            return interests
        vectors = interests.vectors.clone()
        vectors[existing] = self._of("interest")(start.interests.vectors[existing], interests.vectors[existing])
        return interests.replace(vectors)

    def preview(self) -> None:
        """What was tuned gives way to what the transfer makes of it, and is kept."""
        if self._through:
            self.tuned.copy_from_live()
            self._transfer()

    def resume(self) -> None:
        """Puts what was tuned back."""
        if self._training and not self._through:
            self._put()
            self._look(True)

    def settle(self) -> None:
        """What the transfer makes of what was tuned stays."""
        self.preview()
        self._training = False

    def grow(self, items: int) -> None:
        """Both tables follow."""
        if self.awake:
            self.previous.grow(items)
            self.tuned.grow(items)

    def state(self) -> dict[str, ShardRows]:
        """Previous and tuned parameters, and the transfers."""
        if not self.awake:
            return {}
        kept = {"previous": self.previous.state(), "tuned": self.tuned.state()}
        state = {f"{name}.{part}": rows for name, parts in kept.items() for part, rows in parts.items()}
        first = self.parts.topology.rank == 0
        return state | {
            f"transfer.{name}": ShardRows(one, saved=first) for name, one in self.transfers.state_dict().items()
        }

    def _learn(self, data: Any, forward: Forward, follow: Follow) -> None:
        """The transfer's own epochs, over batches of the span; tuned and previous parameters stay."""
        self._learning = True
        self.transfers.requires_grad_(True)
        parameters = list(self.transfers.parameters())
        optimizer = torch.optim.Adam(parameters, self.config.learning_rate)
        for epoch in range(self.config.epochs):
            batches = data.training(_EPOCHS + epoch)
            for batch in follow(batches, f"transfer of span {data.span}, epoch {epoch}", data.config.size):
                extraction = forward.extract(batch)
                known = extraction.interests, extraction.targets, extraction.negatives
                loss = sampled_softmax(forward.scores(batch, *known)) / max(batch.world_targets, 1)
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
                summed = self.parts.topology.sum(torch.cat([gradient.flatten() for gradient in gradients]))
                for parameter, part in zip(parameters, summed.split([one.numel() for one in parameters]), strict=True):
                    parameter.grad = part.view_as(parameter)
                optimizer.step()
        self.transfers.requires_grad_(False)
        self._learning = False

    def _transfer(self) -> None:
        """Puts w_t in the place of w^_t, on each rank's own rows, some at a time."""
        self._look(False)
        with torch.no_grad():
            tables = self.parts.catalogue, self.previous.table
            live, before = (table.flushed_state()["weight"].values for table in tables)
            for mine, then in zip(live.split(self.config.chunk), before.split(self.config.chunk), strict=True):
                mine.copy_(self._of("item")(then, mine))
            self.parts.engine.assign(self._seen(dict(self._dense.named_parameters())))

    def _put(self) -> None:
        """Puts w^_t in the place of w_t."""
        with torch.no_grad():
            self.parts.catalogue.flushed_weight().copy_(self.tuned.table.flushed_weight())
            self.parts.engine.assign(self.tuned.weights)

    def _look(self, through: bool) -> None:
        self._through, self._dense.seen = through, self._seen if through else None

    def _seen(self, tuned: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Dense weights through the transfer, row by row; those whose rows are not of width d stay as tuned."""
        dim, seen = self.parts.catalogue.dim, dict(tuned)
        # Weights keep their precision, whatever the forward pass around it works in.
        with torch.autocast(self.parts.topology.device.type, enabled=False):
            for name, weight in tuned.items():
                if weight.shape[-1] == dim:
                    rows = (weight.detach() if self._learning else weight).reshape(-1, dim)
                    seen[name] = self._of("dense")(self.previous.weights[name].reshape(-1, dim), rows).view_as(weight)
        return seen

    def _of(self, kind: str) -> Transfer:
        module = self.transfers[kind]
        assert isinstance(module, Transfer)
        return module


class _Seen(Extractor):
    """An extractor whose weights are seen through something, where that is set; they keep their names."""

    def __init__(self, extractor: Extractor) -> None:
        super().__init__()
        self.extractor, self.logit_scale, self.query_dim = extractor, extractor.logit_scale, extractor.query_dim
        self.seen: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] | None = None

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        return self.extractor.named_parameters(prefix, recurse, remove_duplicate)

    def forward(self, items: torch.Tensor, mask: torch.Tensor, start: Start) -> Interests:
        if self.seen is None:
            return self.extractor(items, mask, start)
        weights = self.seen(dict(self.named_parameters()))
        return functional_call(self.extractor, weights, (items, mask, start))


def _moments(values: torch.Tensor) -> torch.Tensor:
    """The sum of squares, and how many there are."""
    square = torch.linalg.vector_norm(values, dtype=torch.float64).item() ** 2
    return torch.tensor([square, values.numel()], dtype=torch.float64)

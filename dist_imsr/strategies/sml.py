"""SML: fine-tuning through a learnt transfer from the parameters of the span before."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.func import functional_call
from torchrec import JaggedTensor

from dist_imsr.checks import require
from dist_imsr.data.batch import Batch
from dist_imsr.data.jagged import one_sequence
from dist_imsr.data.span import SpanData
from dist_imsr.distributed.columns import send_to
from dist_imsr.distributed.frozen_model import FrozenModel
from dist_imsr.distributed.objective import Extraction, score_batch
from dist_imsr.distributed.recommender import Recommender
from dist_imsr.distributed.rows import ShardRows
from dist_imsr.model.interests import Interests, Start
from dist_imsr.model.scoring import sampled_softmax
from dist_imsr.model.transfer import Transfer
from dist_imsr.phases import Phase
from dist_imsr.strategies.base import Strategy, register_strategy
from dist_imsr.strategies.resources import Resources
from dist_imsr.strategies.span_trainer import SpanReport, SpanTrainer

_KINDS = ("item", "dense", "interest")
_EPOCHS = 1 << 20  # keys the random numbers of the transfer's epochs, apart from those of the parameters' epochs
_NORM_ROWS = 1 << 16  # rows whose float64 copy is made at a time
_SEED = 0x5317


@dataclass
class SMLConfig:
    """The transfer module and its training.

    Args:
        filters: number of convolutions over the stacked parameters.
        kernel: width of the convolutions, odd.
        hidden: number of units of the hidden layer.
        epochs: number of epochs that train the transfer on each span; 0 leaves it untrained.
        learning_rate: of the transfer, with Adam.
        chunk: number of table rows that pass the transfer at a time.
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


@register_strategy("sml", SMLConfig)
class SML(Strategy):
    """Tunes w^_t on a span through the transfer w_t = f(w_{t-1}, w^_t), which is trained on the spans before.

    "How to Retrain Recommender System? A Sequential Meta-Learning Method" (SIGIR 2020). When span t arrives, the
    transfer is first trained on it, with w^_{t-1} and w_{t-2} fixed, and w_{t-1} is computed again; M^{t-1} was tested
    on the span before that. Then w^_t is tuned, starting from w_{t-1}, with the transfer fixed. Three transfers of one
    shape serve embeddings, rows of dense weights, and existing interests; new interests and ComiRec-SA's queries are
    fine-tuned.

    Between spans the live model is w_t, and a copy of w^_t is kept. During training the live model is w^_t, and the
    forward pass applies the transfer to it.

    Cost per span: that of fine-tuning; in each step the transfer of the distinct items and of the dense weights,
    forward and backward; its own epochs over the span; a pass of the whole table, in chunks, for each validation and
    twice per span; two more tables without optimizer state, which checkpoints hold as well.

    Args:
        config: the strategy's section.
    """

    transfers: nn.ModuleDict | None = None
    previous: FrozenModel  # w_{t-1}
    tuned: FrozenModel  # w^_t

    def __init__(self, config: SMLConfig) -> None:
        self.config = config
        self._through_transfer = self._training_transfer = False

    def train_span(self, trainer: SpanTrainer, span: int) -> SpanReport:
        """Trains the transfer on the span, then the model through the transfer."""
        if span == 0:
            return trainer.pretrain(self)
        trainer.add_items(span)
        data = trainer.open_span(span)
        trainer.admit_users(data)
        trainer.set_learning_rates(pretraining=False)
        model = trainer.model
        with Phase("strategy"):
            if self.transfers is None:
                self.initialize_state(model)
            if not trainer.progress.begun:
                if span > 1 and self.config.epochs:  # in span 1 there is no tuned model yet
                    self._restore_tuned(model)
                    self._train_transfer(trainer, data)
                    self._apply_transfer(model)
                self.previous.copy_from_live()
        self._through_transfer = True
        for _ in trainer.epochs(pretraining=False):
            loss = trainer.train_epoch(data, self, prefetch_lookup=False)  # `_embed` looks up distinct items
            with self._transferred(model):
                quality = trainer.validate(data, self)
            trainer.end_epoch(loss, quality)
        trainer.restore_best()
        with Phase("strategy"):
            self.tuned.copy_from_live()
            self._apply_transfer(model)
        self._through_transfer = False
        trainer.write_back(data, self)
        return trainer.report()

    def extract(self, model: Recommender, batch: Batch, training: bool = False) -> Extraction:
        """Extraction with transferred embeddings, dense weights and existing interests."""
        if self.transfers is None:
            return model.extract(batch, training=training)
        extraction = model.extract(
            batch,
            training=training,
            embed=partial(self._embed, model, batch) if self._through_transfer else None,
            forward=partial(self._forward, model) if self._through_transfer else None,
        )
        interests = extraction.interests
        with Phase("routing"):
            place = send_to(extraction.layout.existing(), interests.vectors.device)
            now, stored = (one.vectors.flatten(0, 1) for one in (interests, extraction.start.interests))
            vectors = now.clone()
            vectors[place] = self._transfer("interest")(stored[place], now[place])
        return extraction._replace(interests=interests.replace(vectors.view_as(interests.vectors)))

    def state(self) -> dict[str, ShardRows]:
        """The previous and the tuned parameters, and the transfers."""
        if self.transfers is None:
            return {}
        copies = {"previous": self.previous.state(), "tuned": self.tuned.state()}
        state = {f"{name}.{part}": rows for name, parts in copies.items() for part, rows in parts.items()}
        transfers = self.transfers.state_dict()
        return state | {f"transfer.{name}": ShardRows(one, saved=self._first) for name, one in transfers.items()}

    def initialize_state(self, model: Recommender) -> None:
        """Copies the model, and builds transfers for rows of its scale."""
        catalogue, store, topology, dim = model.catalogue, model.store, model.topology, model.config.dim
        self._first = topology.rank == 0
        self.previous, self.tuned = (FrozenModel(catalogue, model.extractor, self._first) for _ in range(2))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            transfers = {
                kind: Transfer(dim, self.config.filters, self.config.kernel, self.config.hidden) for kind in _KINDS
            }
            self.transfers = nn.ModuleDict(transfers).to(topology.device)
        self.transfers.requires_grad_(False)
        dense = torch.cat([weight.detach().flatten() for weight in model.extractor.parameters()])
        squares = {
            "item": topology.sum(_sum_of_squares(catalogue.flushed_state()["weight"].values[:, :dim])),
            "dense": _sum_of_squares(dense),
            "interest": topology.sum(_sum_of_squares(store.values[store.birth_span == 0])),  # trained ones
        }
        for kind, (square, count) in squares.items():
            if square > 0:
                self._transfer(kind).scale.fill_((square / count).sqrt().item())

    def resources(self) -> Resources:
        """The previous and the tuned table."""
        return Resources(tables=2)

    @contextmanager
    def _transferred(self, model: Recommender) -> Iterator[None]:
        """Inside this context the live model is w_t; afterwards it is w^_t again, also if the run is stopped."""
        with Phase("validation"):
            self.tuned.copy_from_live()
            self._apply_transfer(model)
        self._through_transfer = False
        try:
            yield
        finally:
            with Phase("validation"):
                self._restore_tuned(model)
            self._through_transfer = True

    def _apply_transfer(self, model: Recommender) -> None:
        """Replaces w^_t by w_t, each rank its own rows, in chunks."""
        with torch.no_grad():
            live, before = (table.flushed_state()["weight"].values for table in (model.catalogue, self.previous.table))
            for rows, previous in zip(live.split(self.config.chunk), before.split(self.config.chunk), strict=True):
                rows.copy_(self._transferred_rows(previous, rows))
            weights = dict(model.extractor.named_parameters())
            model.engine.assign(self._transferred_weights(model, weights))

    def _restore_tuned(self, model: Recommender) -> None:
        """Replaces w_t by w^_t."""
        with torch.no_grad():
            model.catalogue.flushed_weight().copy_(self.tuned.table.flushed_weight())
            model.engine.assign(self.tuned.weights)

    def _train_transfer(self, trainer: SpanTrainer, data: SpanData) -> None:
        """Trains the transfer of w^_{t-1} for some epochs over the span; the parameters do not change."""
        assert self.transfers is not None
        self._through_transfer = self._training_transfer = True
        self.transfers.requires_grad_(True)
        parameters = list(self.transfers.parameters())
        optimizer = torch.optim.Adam(parameters, self.config.learning_rate)
        for epoch in range(self.config.epochs):
            steps = data.training(_EPOCHS + epoch)
            for batch in trainer.track(steps, f"transfer of span {data.span}, epoch {epoch}", data.config.size):
                extraction = self.extract(trainer.model, batch)
                queries = trainer.model.scoring.queries(extraction.interests)
                scores = score_batch(batch, queries, extraction.targets, extraction.negatives)
                loss = sampled_softmax(scores.candidates) / max(batch.world_targets, 1)
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
                summed = trainer.topology.sum(torch.cat([gradient.flatten() for gradient in gradients]))
                for parameter, part in zip(parameters, summed.split([one.numel() for one in parameters]), strict=True):
                    parameter.grad = part.view_as(parameter)
                optimizer.step()
        self.transfers.requires_grad_(False)
        self._through_transfer = self._training_transfer = False

    def _embed(self, model: Recommender, batch: Batch, *sequences: JaggedTensor) -> list[torch.Tensor]:
        """Transferred embeddings of a batch's sequences; each distinct item passes the transfer once."""
        host, device = batch.host, model.topology.device
        distinct = torch.cat([one.values() for one in (host.history, host.targets, host.negatives)]).unique(
            return_inverse=True
        )
        items, place = (send_to(one, device) for one in distinct)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._training_transfer):
            [tuned] = model.catalogue.lookup(one_sequence(items))
        with torch.no_grad():
            [previous] = self.previous.table.lookup(one_sequence(items))
        rows = self._transferred_rows(previous, tuned)[place]
        return list(rows.split([len(one.values()) for one in sequences]))

    def _forward(self, model: Recommender, items: torch.Tensor, mask: torch.Tensor, start: Start) -> Interests:
        """The extractor with transferred weights; without DeepSpeed while the transfer itself is trained."""
        if not self._training_transfer:
            interests: Interests = model.engine(items, mask, start, weights=partial(self._transferred_weights, model))
            return interests
        with model.engine.precision():
            weights = self._transferred_weights(model, dict(model.extractor.named_parameters()))
            transferred: Interests = functional_call(model.extractor, weights, (items, mask, start))
            return transferred

    def _transferred_weights(self, model: Recommender, tuned: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Transferred dense weights, row by row; weights with rows of another width than d stay as tuned."""
        dim, weights = model.config.dim, dict(tuned)
        # Weights keep their precision, also inside a forward pass in bf16.
        with torch.autocast(model.topology.device.type, enabled=False):
            for name, weight in tuned.items():
                if weight.shape[-1] == dim:
                    rows = (weight.detach() if self._training_transfer else weight).reshape(-1, dim)
                    previous = self.previous.weights[name].reshape(-1, dim)
                    weights[name] = self._transfer("dense")(previous, rows).view_as(weight)
        return weights

    def _transferred_rows(self, previous: torch.Tensor, tuned: torch.Tensor) -> torch.Tensor:
        """Transferred rows of the item table ``[n, row width]``; biases stay as tuned."""
        assert self.transfers is not None
        dim = self.previous.table.dim
        embeddings = self._transfer("item")(previous[:, :dim], tuned[:, :dim])
        return torch.cat([embeddings, tuned[:, dim:]], 1)

    def _transfer(self, kind: str) -> Transfer:
        assert self.transfers is not None
        module = self.transfers[kind]
        assert isinstance(module, Transfer)
        return module


def _sum_of_squares(values: torch.Tensor) -> torch.Tensor:
    """The sum of squares, and the number of values."""
    norms = (torch.linalg.vector_norm(part, dtype=torch.float64) for part in values.split(_NORM_ROWS))
    return torch.tensor([sum(norm.item() ** 2 for norm in norms), values.numel()], dtype=torch.float64)

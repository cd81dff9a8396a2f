"""MIMN: a Neural Turing Machine with a memory induction unit; its memory slots are the user's interests."""

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from dist_imsr.checks import require
from dist_imsr.model.base import Extractor
from dist_imsr.model.interests import Interests, Start

# Initial values: logits of the update and erase gates, strengths before softplus, the factor of small weights.
_UPDATE, _ERASE, _STRENGTH, _SMALL = -2.0, -3.0, 3.0, 0.1


@dataclass
class MIMNConfig:
    """The base model mimn, whose memory has ``model.interests`` slots.

    Args:
        memory: the width of a memory slot and of the read vector; a multiple of model.interests.
        controller: the width of the controller's hidden state; a multiple of model.interests.
        induction: the width of a slot's channel in the memory induction unit.
        channels: an interaction updates the channels of this many slots, those with the largest read weights; at most
            model.interests.
        regularisation: the weight of the memory utilisation regularisation.
    """

    memory: int = 64
    controller: int = 64
    induction: int = 64
    channels: int = 2
    regularisation: float = 0.1

    def __post_init__(self) -> None:
        for field in fields(self)[:4]:
            value = getattr(self, field.name)
            require(value >= 1, f"model.mimn.{field.name}", value, "at least 1")
        require(self.regularisation >= 0, "model.mimn.regularisation", self.regularisation, "at least 0")

    def check(self, interests: int) -> None:
        """Raises a ValueError naming the key that does not fit K = ``interests`` slots."""
        for name in ("memory", "controller"):
            value = getattr(self, name)
            expected = f"a multiple of model.interests ({interests}), over which the state of a user is split"
            require(value % interests == 0, f"model.mimn.{name}", value, expected)
        expected = f"at most model.interests ({interests})"
        require(self.channels <= interests, "model.mimn.channels", self.channels, expected)


class _Memory(NamedTuple):
    """The state of B users; all zero before the first interaction."""

    change: torch.Tensor  # [B, K, m], M_t - M_0
    channels: torch.Tensor  # [B, K, s], hidden states of the memory induction unit
    usage: torch.Tensor  # [B, K], g_t, the sum of all write weights
    hidden: torch.Tensor  # [B, c], the controller's hidden state
    read: torch.Tensor  # [B, m], r_t


class MemoryNetwork(Extractor):
    """MIMN ("Practice on Long Sequential User Behavior Modeling for Click-Through Rate Prediction", KDD 2019).

    For each interaction e_t, with K memory rows M(i):

    - controller: c_t = GRU([e_t; r_{t-1}], c_{t-1}); one linear map of c_t gives the two keys, their strengths b, the
      erase vector (sigmoid) and the add vector (tanh);
    - addressing: w(i) = softmax_i(b cos(key, M_{t-1}(i))), for reading and for writing;
    - read: r_t = sum_i w^r(i) M_{t-1}(i);
    - utilisation: w~ is proportional to w^w P with P = softmax(W_g g_{t-1}), and g_t = g_{t-1} + w~;
    - write: M_t(i) = M_{t-1}(i) (1 - w~(i) erase) + w~(i) add;
    - induction: S_t(i) = GRU([M_t(i); e_t], S_{t-1}(i)) for the slots with the largest w^r; others do not change.

    Interest h_k is one linear map of [M(k); S(k)]. The regularisation of a user is the variance of g over slots.

    Where the paper leaves details open: b = softplus, as in the NTM. There is no location-based addressing, as in the
    paper. P is a vector that multiplies w^w slot by slot, and the product is normalised to sum to one. Both uses of g
    normalise it to each slot's share of all writes, so that neither grows with the length of the history, and the
    regularisation sums (share - 1/K)^2 over slots. M_0 is trained, and its rows differ. Maps from items to memory and
    from memory to interests are initialised to identities, and gates to almost open or closed, so that slots are
    initially weighted means of embeddings with slow forgetting; with random gates, the same validation loss took twice
    as many epochs.

    Cost of a step: a loop over the longest history, about 40 small operators per position. State: m + s + 1 + (m + c) /
    K float32 per slot; c_t and r_t of a user are split over the slots. It is computed in the items' precision, also
    under autocast; padding does not change it, bit for bit.

    Args:
        dim: d, the width of embeddings and interests.
        interests: K, the slots of every user.
        config: the widths, checked for this number of slots.
    """

    def __init__(self, dim: int, interests: int, config: MIMNConfig) -> None:
        super().__init__()
        self.config, self.interests = config, interests
        memory, controller, induction = config.memory, config.controller, config.induction
        self.state_dim = memory + induction + 1 + (controller + memory) // interests
        self.rows = nn.Parameter(torch.randn(interests, memory) * _SMALL * memory**-0.5)  # M_0
        self.controller = nn.GRUCell(dim + memory, controller)
        self.head = nn.Linear(controller, 4 * memory + 2)
        self.balance = nn.Parameter(torch.zeros(interests, interests))  # W_g
        self.induction = nn.GRUCell(dim + memory, induction)
        self.output = nn.Linear(memory + induction, dim, bias=False)
        self._initialize()

    @torch.no_grad()
    def _initialize(self) -> None:
        """Makes each slot a weighted mean of embeddings with slow forgetting."""
        config, dim = self.config, self.output.out_features
        memory, controller = config.memory, config.controller
        for block in (
            self.controller.weight_ih[-controller:, :dim],
            self.induction.weight_ih[-config.induction :, :dim],
            self.head.weight[3 * memory : 4 * memory],  # the add vector
            self.output.weight[:, :memory],
            self.output.weight[:, memory:],
        ):
            nn.init.eye_(block)
        # The controller initially depends mostly on the current item.
        self.controller.bias_ih[controller : 2 * controller] = _UPDATE
        self.controller.weight_hh[-controller:].mul_(_SMALL)
        self.controller.weight_ih[-controller:, dim:].mul_(_SMALL)
        nn.init.zeros_(self.head.bias)
        self.head.bias[2 * memory : 3 * memory] = _ERASE
        self.head.bias[-2:] = _STRENGTH

    def forward(self, items: torch.Tensor, mask: torch.Tensor, start: Start) -> Interests:
        """Writes the items into memory one by one; shapes as in `Extractor`."""
        assert start.states is not None
        if not items.shape[1]:  # one position of padding, so that every parameter has a gradient on every rank
            items, mask = functional.pad(items, (0, 0, 0, 1)), functional.pad(mask, (0, 1))
        with torch.autocast(items.device.type, enabled=False):
            # A block without users has K = 0.
            states = start.states if len(items) else start.states.new_zeros(0, self.interests, self.state_dim)
            memory = self._unpack(states.to(items.dtype))
            dim = items.shape[-1]
            # The items' part of the two GRUs' gates needs no loop.
            controller_gates = functional.linear(items, self.controller.weight_ih[:, :dim], self.controller.bias_ih)
            induction_gates = functional.linear(items, self.induction.weight_ih[:, :dim], self.induction.bias_ih)
            columns = (column.unbind(1) for column in (controller_gates, induction_gates, mask.unsqueeze(-1)))
            for controller, induction, real in zip(*columns, strict=True):
                memory = self._step(memory, controller, induction, real)
            vectors = self.output(torch.cat([self.rows + memory.change, memory.channels], -1))
            slots = start.interests.mask.shape[1]
            return start.interests.replace(vectors[:, :slots], self._pack(memory)[:, :slots])

    def regularisation(self, interests: Interests) -> torch.Tensor:
        """The weighted memory utilisation regularisation; shapes as in `Extractor`."""
        assert interests.states is not None
        usage = interests.states[..., self.config.memory + self.config.induction]
        return self.config.regularisation * (_shares(usage) - _shares(usage).mean(-1, keepdim=True)).square().sum()

    def _step(self, old: _Memory, controller: torch.Tensor, induction: torch.Tensor, real: torch.Tensor) -> _Memory:
        """One interaction per user: the items' part of the gates, ``[B, 3 c]`` and ``[B, 3 s]``; real ``[B, 1]``."""
        width, dim = self.config.memory, self.output.out_features
        rows = self.rows + old.change  # [B, K, m], M_{t-1}
        gates = controller + functional.linear(old.read, self.controller.weight_ih[:, dim:])
        hidden = _gru(gates, self.controller, old.hidden)
        keys, erase, add, strengths = self.head(hidden).split([2 * width, width, width, 2], -1)
        erase, add = erase.sigmoid().unsqueeze(1), add.tanh().unsqueeze(1)
        cosine = functional.normalize(keys.unflatten(-1, (2, width)), dim=-1) @ functional.normalize(rows, dim=-1).mT
        reading, writing = (cosine * functional.softplus(strengths).unsqueeze(-1)).unbind(1)  # [B, K] each
        weights = reading.softmax(-1)
        read = (weights.unsqueeze(1) @ rows).squeeze(1)
        # softmax(x) softmax(y), normalised to sum to one, is softmax(x + y).
        written = (writing + functional.linear(_shares(old.usage), self.balance)).softmax(-1) * real
        change = old.change + written.unsqueeze(-1) * (add - erase * rows)
        gates = induction.unsqueeze(1) + functional.linear(self.rows + change, self.induction.weight_ih[:, dim:])
        chosen = real & (weights >= weights.topk(self.config.channels).values[:, -1:])
        channels = torch.where(chosen.unsqueeze(-1), _gru(gates, self.induction, old.channels), old.channels)
        hidden, read = torch.where(real, hidden, old.hidden), torch.where(real, read, old.read)
        return _Memory(change, channels, old.usage + written, hidden, read)

    def _pack(self, memory: _Memory) -> torch.Tensor:
        """The memory as states, ``[B, K, state_dim]``."""
        shared = torch.cat([memory.hidden, memory.read], -1).unflatten(-1, (self.interests, -1))
        return torch.cat([memory.change, memory.channels, memory.usage.unsqueeze(-1), shared], -1)

    def _unpack(self, states: torch.Tensor) -> _Memory:
        config = self.config
        width = (config.memory + config.controller) // self.interests
        change, channels, usage, shared = states.split([config.memory, config.induction, 1, width], -1)
        hidden, read = shared.flatten(1).split([config.controller, config.memory], -1)
        return _Memory(change, channels, usage.squeeze(-1), hidden, read)

    def activation_numbers(self, users: int, length: int, slots: int) -> int:
        """The loop keeps rows and channels of every slot for each item; as in `Extractor`."""
        return 8 * users * length * slots * (self.config.memory + self.config.induction)


def _gru(gates: torch.Tensor, cell: nn.GRUCell, hidden: torch.Tensor) -> torch.Tensor:
    """The cell's new hidden state; ``gates`` is the input's part of its gates, ``[..., 3 h]``."""
    own = functional.linear(hidden, cell.weight_hh, cell.bias_hh)
    width = hidden.shape[-1]
    reset, update = (gates[..., : 2 * width] + own[..., : 2 * width]).sigmoid().chunk(2, -1)
    return torch.lerp((gates[..., 2 * width :] + reset * own[..., 2 * width :]).tanh(), hidden, update)


def _shares(usage: torch.Tensor) -> torch.Tensor:
    """Each slot's share of all writes; zero before the first."""
    return usage / usage.sum(-1, keepdim=True).clamp(min=1)

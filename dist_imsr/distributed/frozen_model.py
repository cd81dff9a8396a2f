"""A copy of a model's parameters that training does not change."""

import torch
from torch import nn

from dist_imsr.distributed.catalogue import Catalogue
from dist_imsr.distributed.rows import ShardRows


class FrozenModel:
    """A copy of the sharded table, without optimizer state, and of the dense weights.

    The copied table grows with the catalogue. The constructor and `copy_from_live` are collective.

    Args:
        catalogue: the live table.
        module: the live dense module, the same on every rank.
        first: whether this rank saves the dense weights, which all ranks hold.
    """

    def __init__(self, catalogue: Catalogue, module: nn.Module, first: bool) -> None:
        self._catalogue, self._module, self._first = catalogue, module, first
        self.table = catalogue.frozen_copy()
        self.weights = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}

    def copy_from_live(self) -> None:
        """Copies the live parameters as they are now."""
        with torch.no_grad():
            self.table.flushed_weight().copy_(self._catalogue.flushed_weight())
            for name, parameter in self._module.named_parameters():
                self.weights[name].copy_(parameter)

    def state(self) -> dict[str, ShardRows]:
        """The tensors that a checkpoint saves.

        Returns:
            Live tensors by name.
        """
        dense = {f"dense.{name}": ShardRows(weight, saved=self._first) for name, weight in self.weights.items()}
        return {"catalogue": self.table.flushed_state()["weight"]} | dense

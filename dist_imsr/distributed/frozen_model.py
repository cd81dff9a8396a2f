"""The parameters of a model as they stood at another time."""

import torch
from torch import nn

from dist_imsr.distributed.catalogue import Catalogue
from dist_imsr.distributed.rows import ShardRows


class FrozenModel:
    """A copy of a sharded table and of the dense weights; all methods but `state` are collective.

    It holds the table a second time, without the optimizer's state.

    Args:
        catalogue: the table.
        module: the dense module, the same on every rank.
        first: whether this rank is the one that saves what all hold.
    """

    def __init__(self, catalogue: Catalogue, module: nn.Module, first: bool) -> None:
        self._catalogue, self._module, self._first = catalogue, module, first
        self.table = catalogue.frozen_copy()
        self.weights = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}

    def take(self) -> None:
        """Copies the model as it stands."""
        with torch.no_grad():
            self.table.weight.copy_(self._catalogue.weight)
            for name, parameter in self._module.named_parameters():
                self.weights[name].copy_(parameter)

    def grow(self, items: int) -> None:
        """Follows the catalogue.

        Args:
            items: how many items are known from here on.
        """
        self.table.grow(items)

    def state(self) -> dict[str, ShardRows]:
        """What a checkpoint holds.

        Returns:
            Live tensors by name.
        """
        dense = {f"dense.{name}": ShardRows(weight, saved=self._first) for name, weight in self.weights.items()}
        return {"catalogue": self.table.state["weight"]} | dense

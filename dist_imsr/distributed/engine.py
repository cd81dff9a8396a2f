"""The dense module, data-parallel under DeepSpeed. The sharded table never comes near it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import nn

from dist_imsr.config import require

_SHIPPED = Path(__file__).resolve().parents[2] / "configs" / "deepspeed"


@dataclass
class EngineConfig:
    """The dense weights and their optimizer.

    Args:
        deepspeed: a DeepSpeed JSON file; configs/deepspeed holds ZeRO 0, 1, 2 and bf16.
        learning_rate: of the dense weights in pre-training.
        incremental_learning_rate: of the dense weights in every later span.
    """

    deepspeed: Path = _SHIPPED / "zero0.json"
    learning_rate: float = 2e-3
    incremental_learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, "engine.learning_rate", self.learning_rate, "above 0")
        rate = self.incremental_learning_rate
        require(rate > 0, "engine.incremental_learning_rate", rate, "above 0")
        require(self.deepspeed.is_file(), "engine.deepspeed", str(self.deepspeed), "a DeepSpeed JSON file")
        read_settings(self.deepspeed)


def read_settings(path: Path) -> dict[str, Any]:
    """Reads a DeepSpeed configuration and refuses what would silently break training beside a sharded table.

    Args:
        path: the JSON file.

    Returns:
        The settings, ready for `DenseEngine`.

    Raises:
        ValueError: naming the file and key, for gradient accumulation, fp16, ZeRO 3, another optimizer than Adam, a
            learning rate (which belongs to the engine's section), or text that is no JSON object.
    """
    try:
        settings = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"engine.deepspeed: {path} is not JSON: {error}") from None

    def refuse(condition: bool, key: str, why: str) -> None:
        if condition:
            raise ValueError(f"engine.deepspeed: {path}: {key}: {why}")

    refuse(not isinstance(settings, dict), "file", "expected a JSON object")
    optimizer = settings.get("optimizer", {})
    refuse(
        settings.get("gradient_accumulation_steps", 1) != 1,
        "gradient_accumulation_steps",
        "must be 1, since each backward pass is one fused update of the table; raise training.batch instead",
    )
    refuse(
        settings.get("fp16", {}).get("enabled", False),
        "fp16",
        "loss scaling would reach the fused table; take bf16.json or fp32",
    )
    refuse(
        settings.get("zero_optimization", {}).get("stage", 0) not in (0, 1, 2),
        "zero_optimization.stage",
        "must be 0, 1 or 2",
    )
    refuse(optimizer.get("type") != "Adam", "optimizer.type", "must be Adam")
    refuse(
        "lr" in optimizer.get("params", {}),
        "optimizer.params.lr",
        "belongs to engine.learning_rate and engine.incremental_learning_rate",
    )
    # DeepSpeed's own defaults are 1.0 here, AdamW and a weight decay of 0.01.
    settings.setdefault("gradient_clipping", 0.0)
    optimizer["params"] = {"torch_adam": True, "adam_w_mode": False, "weight_decay": 0.0} | optimizer.get("params", {})
    # The schedule makes the batches; DeepSpeed only wants to know that there is one.
    settings["train_micro_batch_size_per_gpu"] = 1
    return settings


class DenseEngine:
    """DeepSpeed's engine around the dense module.

    Args:
        module: built the same on every rank.
        config: the engine's section.
        device: where the module trains.
        events: a folder for TensorBoard's event files, written by rank 0; none without it.
    """

    def __init__(self, module: nn.Module, config: EngineConfig, device: torch.device, events: Path | None) -> None:
        self.config, settings = config, read_settings(config.deepspeed)
        settings["optimizer"]["params"]["lr"] = config.learning_rate
        if events is not None:
            settings["tensorboard"] = {"enabled": True, "output_path": str(events.parent), "job_name": events.name}
        self._engine, *_ = deepspeed.initialize(
            model=module.to(device), model_parameters=list(module.parameters()), config=settings
        )
        self.module = module

    def __call__(self, *inputs: Any) -> Any:
        """The dense module's forward pass, under the precision that the settings name."""
        return self._engine(*inputs)

    def train(self, training: bool) -> None:
        """Switches between training and evaluation.

        Args:
            training: whether gradients are wanted next.
        """
        self._engine.train(training)

    def update(self, loss: torch.Tensor) -> None:
        """One backward pass, through the table too, and one step of the dense optimizer; collective.

        Args:
            loss: this rank's scalar; DeepSpeed and TorchRec both divide gradients by the world size.
        """
        self._engine.backward(loss)
        self._engine.step()

    def set_learning_rate(self, learning_rate: float) -> None:
        """Sets the dense optimizer's step size.

        Args:
            learning_rate: from the next update on.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate

    def log(self, values: dict[str, float], step: int) -> None:
        """Hands numbers to DeepSpeed's monitor.

        Args:
            values: by their names in TensorBoard.
            step: where they stand on the axis.
        """
        self._engine.monitor.write_events([(name, value, step) for name, value in values.items()])

    def state(self) -> list[torch.Tensor]:
        """Everything that training changes: weights, the optimizer's own copies under ZeRO, its moments.

        Returns:
            The live tensors, in a fixed order; moments are missing before the first update.
        """
        optimizer = getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)  # ZeRO wraps torch's
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        moments = [
            value
            for parameter in held
            for _, value in sorted(optimizer.state.get(parameter, {}).items())
            if isinstance(value, torch.Tensor)
        ]
        return [*self.module.parameters(), *held, *moments]

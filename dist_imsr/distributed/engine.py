"""The dense module, data-parallel under DeepSpeed. The sharded table never comes near it."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import nn

from dist_imsr import devices
from dist_imsr.checks import require
from dist_imsr.distributed.rows import ShardRows
from dist_imsr.keys import free, later_spans, never
from dist_imsr.phases import Phase

_SHIPPED = Path(__file__).resolve().parents[2] / "configs" / "deepspeed"


@dataclass
class EngineConfig:
    """The dense weights and their optimizer.

    Args:
        deepspeed: a DeepSpeed JSON file; configs/deepspeed holds ZeRO 0, 1, 2 and bf16.
        learning_rate: of the dense weights in pre-training.
        incremental_learning_rate: of the dense weights in every later span.
        tf32: round the factors of float32 products to TF32 in training and extraction, on CUDA devices that have it;
            ranks are counted from whole ones all the same.
        compile: let torch.compile fuse the extractor's small kernels; the first steps take a minute then.
    """

    deepspeed: Path = field(default=_SHIPPED / "zero0.json", metadata=never(compare="shared"))
    learning_rate: float = 2e-3
    incremental_learning_rate: float = field(default=1e-3, metadata=later_spans())
    tf32: bool = False
    compile: bool = field(default=False, metadata=free())

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
        ValueError: naming the file and key, for gradient accumulation, fp16, ZeRO 3, another optimizer than torch's
            Adam, a learning rate or scheduler (which belong to the engine's section), or text that is no JSON object.
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
    given = set(optimizer.get("params", {})) - {"betas", "eps", "weight_decay", "torch_adam", "adam_w_mode"}
    refuse(bool(given), f"optimizer.params.{min(given, default='')}", "is not among what checkpoints keep")
    refuse(not optimizer.get("params", {}).get("torch_adam", True), "optimizer.params.torch_adam", "must be true")
    refuse("scheduler" in settings, "scheduler", "learning rates belong to the engine's section")
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
        settings["optimizer"]["params"] |= {"lr": config.learning_rate, "fused": True}
        if events is not None:
            settings["tensorboard"] = {"enabled": True, "output_path": str(events.parent), "job_name": events.name}
        if config.compile:
            module.compile(dynamic=True)  # histories and interests are as long as a batch's longest
        self._engine, *_ = deepspeed.initialize(
            model=module.to(device), model_parameters=list(module.parameters()), config=settings
        )
        self.module, self._device = module, device
        autocast = settings.get("torch_autocast", {})
        self._autocast = getattr(torch, autocast.get("dtype", "bfloat16")) if autocast.get("enabled") else None
        self._rank = dist.get_rank()
        # Moments from the start, not from the first update on, so that all states are alike.
        for held in self._held():
            moments = {"exp_avg": torch.zeros_like(held), "exp_avg_sq": torch.zeros_like(held)}
            self._optimizer.state[held] = {"step": held.new_zeros((), dtype=torch.float32), **moments}

    def __call__(self, *inputs: Any) -> Any:
        """The dense module's forward pass, under the precision that the settings name."""
        with self.matmul_precision():
            return self._engine(*inputs)

    def matmul_precision(self) -> AbstractContextManager[None]:
        """The precision of float32 products that the section names, for what is computed beside the module."""
        return devices.matmul_precision(self._device, self.config.tf32)

    @contextmanager
    def precision(self) -> Iterator[None]:
        """The precision that the settings name, for forward passes of the module that go past the engine."""
        with (
            self.matmul_precision(),
            torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None),
        ):
            yield

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
        with Phase("backward"), self.matmul_precision():
            self._engine.backward(loss)
        with Phase("optimizer"):
            self._engine.step()

    def assign(self, weights: dict[str, torch.Tensor]) -> None:
        """Sets the weights, and the optimizer's own copies of them under ZeRO; its moments stay.

        Args:
            weights: every parameter of the module, by its name.
        """
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                parameter.copy_(weights[name])
            parts = self.state()
            if "zero.weights" in parts:
                part = parts["zero.weights"]
                whole = torch.cat([parameter.flatten() for parameter in self.module.parameters()])
                part.values.copy_(whole[part.first : part.first + len(part.values)])

    def set_learning_rate(self, learning_rate: float) -> None:
        """Sets the dense optimizer's step size.

        Args:
            learning_rate: from the next update on.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate

    @Phase("events")
    def log(self, values: dict[str, float], step: int) -> None:
        """Hands numbers to DeepSpeed's monitor.

        Args:
            values: by their names in TensorBoard.
            step: where they stand on the axis.
        """
        self._engine.monitor.write_events([(name, value, step) for name, value in values.items()])

    def flush(self) -> None:
        """Brings what DeepSpeed's monitor was told to its files."""
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Ends what DeepSpeed's monitor writes."""
        if self._events is not None:
            self._events.close()

    def forget(self, step: int) -> None:
        """Voids what an earlier process told DeepSpeed's monitor.

        Args:
            step: from it on.
        """
        if self._events is not None:
            self._events.purge_step = step
            self._events.close()  # the next event opens a new file, which begins with the purge

    def state(self) -> dict[str, ShardRows]:
        """Everything that training changes: weights, the optimizer's own copies under ZeRO, its moments.

        Returns:
            The live tensors; what all ranks hold is saved by the first, and under ZeRO each has its own part.
        """
        first = self._rank == 0
        state = {name: ShardRows(parameter, saved=first) for name, parameter in self.module.named_parameters()}
        whole: dict[torch.Tensor, str] = {parameter: name for name, parameter in self.module.named_parameters()}
        total = sum(map(torch.Tensor.numel, whole))
        for held in self._held():
            moments = self._optimizer.state[held]
            if held in whole:
                parts = {name: ShardRows(moments[name], saved=first) for name in ("exp_avg", "exp_avg_sq")}
            else:  # ZeRO's part of all weights, one after the other and padded at the end
                begin = self._rank * len(held)
                length = max(0, min(len(held), total - begin))
                parts = {
                    name: ShardRows(value[:length], begin, total)
                    for name, value in {"weights": held, **moments}.items()
                    if name != "step"
                }
            step = ShardRows(moments["step"].view(1), saved=first)
            state |= {f"{whole.get(held, 'zero')}.{name}": rows for name, rows in {**parts, "step": step}.items()}
        return state

    @property
    def _events(self) -> Any:
        """What writes TensorBoard's files; None where nobody does."""
        return getattr(self._engine.monitor.tb_monitor, "summary_writer", None)

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        return getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)  # ZeRO wraps torch's

    def _held(self) -> list[torch.Tensor]:
        """What the optimizer moves: the weights, or this rank's part of a copy of them under ZeRO."""
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

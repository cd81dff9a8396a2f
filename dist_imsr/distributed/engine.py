"""The dense module, data-parallel under DeepSpeed, which must not get the sharded table."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import nn
from torch.func import functional_call

from dist_imsr import devices
from dist_imsr.checks import require
from dist_imsr.distributed.rows import ShardRows
from dist_imsr.keys import free, later_spans, never
from dist_imsr.phases import Phase

Substitution = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
"""From the parameters of a module, by name, to the tensors that its forward pass uses in their place."""

_SHIPPED = Path(__file__).resolve().parents[2] / "configs" / "deepspeed"


@dataclass
class EngineConfig:
    """The dense weights and their optimizer.

    Args:
        deepspeed: a DeepSpeed JSON file; configs/deepspeed holds ZeRO 0, 1, 2 and bf16. One with which DeepSpeed scales
            the loss, or keeps the dense weights in another type than float32, is refused.
        learning_rate: of the dense weights in pre-training.
        incremental_learning_rate: of the dense weights in every later span.
        tf32: round the factors of float32 products to TF32 in training and extraction, on CUDA devices that have it;
            ranking always uses full float32.
        compile: let torch.compile fuse the extractor's small kernels; the first steps then take a minute.
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
    """Reads a DeepSpeed configuration and refuses what would silently break training next to a sharded table.

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
        "loss scaling would reach the fused table; use bf16.json or fp32",
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
    unknown = set(optimizer.get("params", {})) - {"betas", "eps", "weight_decay", "torch_adam", "adam_w_mode"}
    refuse(bool(unknown), f"optimizer.params.{min(unknown, default='')}", "is not saved in checkpoints")
    refuse(not optimizer.get("params", {}).get("torch_adam", True), "optimizer.params.torch_adam", "must be true")
    refuse("scheduler" in settings, "scheduler", "learning rates belong to the engine's section")
    # DeepSpeed's own defaults are clipping at 1.0, AdamW and a weight decay of 0.01.
    settings.setdefault("gradient_clipping", 0.0)
    if "torch_autocast" in settings:
        settings["torch_autocast"].setdefault("dtype", "bfloat16")  # torch's own default depends on the device
    optimizer["params"] = {"torch_adam": True, "adam_w_mode": False, "weight_decay": 0.0} | optimizer.get("params", {})
    # DeepSpeed requires a batch size; the schedule decides it.
    settings["train_micro_batch_size_per_gpu"] = 1
    return settings


class _WithSubstitutes(nn.Module):
    """Calls a module with its own parameters or with substitutes; its parameters keep the module's names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        return self.module.named_parameters(prefix, recurse, remove_duplicate)

    def forward(self, *inputs: Any, weights: Substitution | None = None) -> Any:
        if weights is None:
            return self.module(*inputs)
        return functional_call(self.module, weights(dict(self.module.named_parameters())), inputs)


class DenseEngine:
    """DeepSpeed's engine around the dense module.

    Args:
        module: the same on every rank.
        config: the engine's section.
        device: where the module trains.
        events: a folder for TensorBoard's event files, which rank 0 writes; None for no files.

    Raises:
        ValueError: naming the file, for settings that DeepSpeed refuses, that scale the loss, or that change the
            precision of the weights.
    """

    def __init__(self, module: nn.Module, config: EngineConfig, device: torch.device, events: Path | None) -> None:
        self.config, settings = config, read_settings(config.deepspeed)
        settings["optimizer"]["params"] |= {"lr": config.learning_rate, "fused": True}
        settings["timers"] = {"throughput": {"enabled": False}}  # which waits for the device twice in each step
        if events is not None:
            settings["tensorboard"] = {"enabled": True, "output_path": str(events.parent), "job_name": events.name}
        if config.compile:
            module.compile(dynamic=True)  # lengths of histories and numbers of interests differ between batches
        model = _WithSubstitutes(module).to(device)
        try:
            self._engine, *_ = deepspeed.initialize(
                model=model, model_parameters=list(module.parameters()), config=settings
            )
        except (ValueError, AssertionError, NotImplementedError) as error:
            raise ValueError(f"engine.deepspeed: {config.deepspeed}: {' '.join(str(error).split())}") from None
        self.module, self._device = module, device
        self._refuse_scaled_losses()
        self._autocast = self._engine.torch_autocast_dtype() if self._engine.torch_autocast_enabled() else None
        self._rank = dist.get_rank()
        # torch creates moments at the first update; checkpoints need them from the start.
        for weights in self._optimized():
            moments = {"exp_avg": torch.zeros_like(weights), "exp_avg_sq": torch.zeros_like(weights)}
            self._optimizer.state[weights] = {"step": weights.new_zeros((), dtype=torch.float32), **moments}

    def __call__(self, *inputs: Any, weights: Substitution | None = None) -> Any:
        """The dense module's forward pass, under the configured precision.

        Args:
            inputs: of the module.
            weights: maps the module's parameters to the tensors to compute with; gradients reach the parameters through
                it. None for the parameters themselves.

        Returns:
            The module's output.
        """
        with self.matmul_precision():
            return self._engine(*inputs) if weights is None else self._engine(*inputs, weights=weights)

    def matmul_precision(self) -> AbstractContextManager[None]:
        """The configured precision of float32 products, for computations outside the module."""
        return devices.matmul_precision(self._device, self.config.tf32)

    @contextmanager
    def precision(self) -> Iterator[None]:
        """The configured precision, for forward passes of the module that bypass the engine."""
        with (
            self.matmul_precision(),
            torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None),
        ):
            yield

    def train(self, training: bool) -> None:
        """Switches between training and evaluation.

        Args:
            training: True for training.
        """
        self._engine.train(training)

    def update(self, loss: torch.Tensor) -> None:
        """One backward pass, through the table too, and one step of the dense optimizer; collective.

        Args:
            loss: this rank's scalar; DeepSpeed and TorchRec both divide gradients by the world size.
        """
        devices.wait_for_copies(self._device)
        with Phase("backward"), self.matmul_precision():
            self._engine.backward(loss)
        with Phase("optimizer"):
            self._engine.step()

    def assign(self, weights: dict[str, torch.Tensor]) -> None:
        """Sets the weights, and the optimizer's own copies of them under ZeRO; the moments stay.

        Args:
            weights: every parameter of the module, by name.
        """
        parts = self.state()
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                parameter.copy_(weights[name])
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
        """Writes scalars to TensorBoard through DeepSpeed's monitor.

        Args:
            values: by tag.
            step: the global step.
        """
        self._engine.monitor.write_events([(name, value, step) for name, value in values.items()])

    def flush(self) -> None:
        """Flushes the event files."""
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Closes the event files."""
        if self._events is not None:
            self._events.close()

    def purge_events(self, step: int) -> None:
        """Makes TensorBoard discard the events that an earlier process wrote from a step on.

        Args:
            step: the first to discard.
        """
        if self._events is not None:
            self._events.purge_step = step
            self._events.close()  # the next event opens a new file, which starts with the purge

    def state(self) -> dict[str, ShardRows]:
        """Everything that training changes: weights, the optimizer's own copies under ZeRO, its moments.

        Returns:
            Live tensors. Rank 0 saves those that all ranks hold; under ZeRO each rank saves its own part.
        """
        devices.wait_for_copies(self._device)
        first = self._rank == 0
        state = {name: ShardRows(parameter, saved=first) for name, parameter in self.module.named_parameters()}
        whole: dict[torch.Tensor, str] = {parameter: name for name, parameter in self.module.named_parameters()}
        total = sum(map(torch.Tensor.numel, whole))
        for weights in self._optimized():
            moments = self._optimizer.state[weights]
            if weights in whole:
                parts = {name: ShardRows(moments[name], saved=first) for name in ("exp_avg", "exp_avg_sq")}
            else:  # ZeRO's part of all weights, which are concatenated and padded at the end
                begin = self._rank * len(weights)
                length = max(0, min(len(weights), total - begin))
                parts = {
                    name: ShardRows(value[:length], begin, total)
                    for name, value in {"weights": weights, **moments}.items()
                    if name != "step"
                }
            step = ShardRows(moments["step"].view(1), saved=first)
            state |= {f"{whole.get(weights, 'zero')}.{name}": rows for name, rows in {**parts, "step": step}.items()}
        return state

    def _refuse_scaled_losses(self) -> None:
        """Refuses settings by which a gradient would reach the table scaled, or the weights would not be float32.

        A key that does either may have any name; so the built engine's own loss is asked for its gradient.
        """
        precisions = {str(weight.dtype) for weight in self.module.parameters()} - {"torch.float32"}
        if precisions:
            raise ValueError(
                f"engine.deepspeed: {self.config.deepspeed}: the dense weights would be {min(precisions)}, and the "
                'table and interests are float32; for products in bf16 use "torch_autocast", as bf16.json does'
            )
        loss = torch.zeros((), device=self._device, requires_grad=True)
        (scale,) = torch.autograd.grad(self._engine.scale(loss + 0) / self._engine.gradient_accumulation_steps(), loss)
        if scale != 1:
            raise ValueError(
                f"engine.deepspeed: {self.config.deepspeed}: DeepSpeed would multiply the loss by {scale.item():g}, "
                "which would reach the fused table; use bf16.json or fp32, and no gradient accumulation"
            )

    @property
    def _events(self) -> Any:
        """TensorBoard's writer; None on ranks that write no events."""
        return getattr(self._engine.monitor.tb_monitor, "summary_writer", None)

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        return getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)  # ZeRO wraps torch's

    def _optimized(self) -> list[torch.Tensor]:
        """The weights that the optimizer updates; under ZeRO, this rank's part of a copy of them."""
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

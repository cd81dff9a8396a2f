"""The least time of training, by `dist_imsr.planning`'s formulas and the rates that were measured on this machine.

What they leave out: waiting for kernels to be launched, exchanges between ranks, reading batches, and what rows read at
random cost beyond a copy in one stretch. What they count besides the rows of the table and the optimizer's state are
activations, as often as the planner takes them to be read and written; a step whose kernels are fused further could
pass below.
"""

from typing import Any

from dist_imsr.benchmarks.ceilings import COPY, PRODUCT, TO_DEVICE
from dist_imsr.benchmarks.report import Bound, Least, Rates
from dist_imsr.data.batch import BatchConfig
from dist_imsr.distributed.catalogue import CatalogueConfig
from dist_imsr.distributed.engine import EngineConfig
from dist_imsr.model.extractors import ModelConfig
from dist_imsr.planning.config import LoadConfig, PlanConfig
from dist_imsr.planning.hardware import HardwareConfig
from dist_imsr.planning.load import Step, spans_of
from dist_imsr.planning.memory import MemoryModel, row_wise
from dist_imsr.planning.times import TimeModel

GPU = {"cpu": "cpu", "cuda": "h200"}
"""The planner's device by torch's kind; its data sheet is only read where nothing was measured."""
_FREE = 1e30  # bytes a second of links that are not counted


def product(rates: Rates, engine: EngineConfig) -> str:
    """The ceiling of the products that a run makes of float32 factors.

    Args:
        rates: of the machine.
        engine: of the run.

    Returns:
        The figure's name: that of TF32 where the run asks for it and the machine has it.
    """
    rounded = PRODUCT.format("tf32")
    return rounded if engine.tf32 and rounded in rates else PRODUCT.format("fp32")


def measured(rates: Rates, ranks: int, engine: EngineConfig) -> HardwareConfig:
    """A rank's part of this machine as the planner's device.

    Args:
        rates: of the machine.
        ranks: that share them.
        engine: of the run, which says how float32 factors are multiplied.

    Returns:
        The figures that were measured, all of each counted on; no overhead, no latency, and links that cost nothing.
    """
    return HardwareConfig(
        memory_bandwidth=rates[COPY] / ranks,
        fp32=rates[product(rates, engine)] / ranks,
        bf16=rates[PRODUCT.format("bf16")] / ranks,
        to_host=rates.get(TO_DEVICE, rates[COPY]) / ranks,
        intra_node=_FREE,
        inter_node=_FREE,
        latency=0.0,
        overhead=0.0,
        memory_efficiency=1.0,
        compute_efficiency=1.0,
        link_efficiency=1.0,
    )


def step_bound(options: Any) -> Bound:
    """The bound of one step of the synthetic training.

    Args:
        options: of the steps, as those of the benchmark ``train``.

    Returns:
        The longer of the time in which memory moves what a step reads and writes, and that of its products.
    """

    def least(rates: Rates) -> Least:
        config = PlanConfig(
            items=options.items,
            users=options.users,
            gpus_per_node=options.ranks,
            gpu=GPU[options.device],  # type: ignore[arg-type]
            spans=1,
            dry_run=False,
            load=LoadConfig(new_items=0.0),
            hardware=measured(rates, options.ranks, options.engine),
            model=ModelConfig(dim=options.dim, interests=options.interests),
            batch=BatchConfig(options.batch, options.history, options.targets, options.negatives),
            catalogue=CatalogueConfig(headroom=0.0),
            engine=options.engine,
        )
        spans, users = spans_of(config), options.batch // options.ranks
        history, targets = (users * (1 + most) // 2 for most in (options.history, options.targets))  # on average
        step = Step(users, history, targets, options.history, options.targets, options.negatives, options.interests)
        terms = TimeModel(MemoryModel(config, spans, row_wise(options.ranks))).step_seconds(spans[0], step)
        both = Least(COPY, terms["memory"]), Least(product(rates, options.engine), terms["multiplications"])
        return max(both, key=lambda one: one.seconds)

    return least


def per(bound: Bound, units: float) -> Bound:
    """The bound of one of several things that are done together.

    Args:
        bound: of all of them.
        units: how many.

    Returns:
        Of each.
    """

    def least(rates: Rates) -> Least:
        figure, seconds = bound(rates)
        return Least(figure, seconds / units)

    return least

"""The shortest time of training, by `dist_imsr.planning`'s formulas and the rates that were measured on this machine.

It leaves out kernel launches, exchanges between ranks, reading batches, and the cost of scattered rows over that of a
contiguous copy. Besides the rows of the table and the optimizer's state it counts activations, as often as the planner
assumes that they are read and written; a step with kernels that are fused further could be faster.
"""

from typing import Any

from dist_imsr.benchmarks.ceilings import COPY, PRODUCT, TO_DEVICE
from dist_imsr.benchmarks.report import Bound, Floor, Rates
from dist_imsr.data.batch import BatchConfig
from dist_imsr.distributed.catalogue import CatalogueConfig
from dist_imsr.distributed.engine import EngineConfig
from dist_imsr.model.extractors import ModelConfig
from dist_imsr.planning.config import LoadConfig, PlanConfig
from dist_imsr.planning.hardware import HardwareConfig
from dist_imsr.planning.load import spans_of
from dist_imsr.planning.memory import MemoryModel, row_wise
from dist_imsr.planning.times import TimeModel
from dist_imsr.strategies.step_memory import Step

GPU = {"cpu": "cpu", "cuda": "h200"}
"""The planner's device by torch's kind; its data sheet is read where nothing was measured."""
_FREE = 1e30  # bytes/s of links that are not counted


def product(rates: Rates, engine: EngineConfig) -> str:
    """The name of the ceiling of a run's float32 products: TF32 where the run uses it and the machine has it."""
    rounded = PRODUCT.format("tf32")
    return rounded if engine.tf32 and rounded in rates else PRODUCT.format("fp32")


def measured(rates: Rates, ranks: int, engine: EngineConfig) -> HardwareConfig:
    """A rank's part of this machine as the planner's device: measured rates, no overhead, no latency, free links.

    Args:
        rates: of the machine.
        ranks: that share them.
        engine: of the run, for the precision of float32 products.
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
    """The bound of one step of synthetic training: the longer of its memory traffic's time and its products' time.

    Args:
        options: a `dist_imsr.benchmarks.steps.StepsOptions`.
    """

    def shortest(rates: Rates) -> Floor:
        config = PlanConfig(
            items=options.items,
            users=options.users,
            gpus_per_node=options.ranks,
            gpu=GPU[options.device],  # type: ignore[arg-type]
            spans=1,
            dry_run=False,
            load=LoadConfig(new_items=0.0),
            hardware=measured(rates, options.ranks, options.engine),
            model=ModelConfig(dim=options.dim, interests=options.interests, item_bias=False),
            batch=BatchConfig(options.batch, options.history, options.targets, options.negatives),
            catalogue=CatalogueConfig(headroom=0.0),
            engine=options.engine,
        )
        spans, users = spans_of(config), options.batch // options.ranks
        history, targets = (users * (1 + most) // 2 for most in (options.history, options.targets))  # on average
        step = Step(users, history, targets, options.history, options.targets, options.negatives, options.interests)
        terms = TimeModel(MemoryModel(config, spans, row_wise(options.ranks))).step_seconds(spans[0], step)
        both = Floor(COPY, terms["memory"]), Floor(product(rates, options.engine), terms["multiplications"])
        return max(both, key=lambda one: one.seconds)

    return shortest


def per(bound: Bound, units: float) -> Bound:
    """The bound of one of several units that are done together.

    Args:
        bound: of all units.
        units: their number.
    """

    def shortest(rates: Rates) -> Floor:
        figure, seconds = bound(rates)
        return Floor(figure, seconds / units)

    return shortest

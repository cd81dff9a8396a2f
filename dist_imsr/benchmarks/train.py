"""Speed and memory of training steps, and ratios whose sides take turns."""

from dataclasses import dataclass, field, replace

from dist_imsr.benchmarks.floors import per, step_bound
from dist_imsr.benchmarks.options import MAY_BE_ZERO
from dist_imsr.benchmarks.report import Figure, ratios
from dist_imsr.benchmarks.steps import Side, StepsOptions, plain_step, sharded_step
from dist_imsr.benchmarks.world import World, start_worlds, take_turns

_FEW_ITEMS = 60_000


@dataclass(frozen=True, kw_only=True)
class TrainBench(StepsOptions):
    """Times training steps of ComiRec-DR over a synthetic catalogue.

    Args:
        warmup: steps before the first run.
    """

    warmup: int = field(default=5, metadata=MAY_BE_ZERO)


def bench_train(options: TrainBench) -> list[Figure]:
    """Measures steps/s, users/s and memory, and compares: several ranks and one, many items and few, plain PyTorch.

    The ceiling of steps/s and users/s is the longer of two times (`dist_imsr.benchmarks.floors`): memory moving the
    rows that a step reads and writes, the optimizer's state and the activations; and the matrix products.

    ``users_per_second_R_ranks_over_1`` divides one global batch among the ranks, as the schedule does; in
    ``..._same_batch_per_rank`` the global batch grows with them.
    """
    alone = replace(options, ranks=1)
    two_threads = replace(alone, threads=2)
    with start_worlds(options, alone, two_threads, two_threads) as (world, one_rank, ours, plain):
        with world, one_rank:
            figures = _speed(options, world, one_rank)
        return figures + _over_plain_torch(two_threads, ours, plain)


def _speed(options: TrainBench, world: World, one_rank: World) -> list[Figure]:
    """Speed on all ranks, over that of one rank, and the part that the number of items has in it."""
    alone, ranks, settings, bound = replace(options, ranks=1), options.ranks, options.settings, step_bound(options)
    half = replace(alone, batch=options.batch // ranks)
    few = replace(alone, items=min(_FEW_ITEMS, options.items))
    whole, single = _side(world, options), _side(one_rank, alone)
    others = [single, _side(one_rank, half)] if ranks > 1 else []
    seconds, *others_seconds = take_turns(options.repeats, whole.run, *(side.run for side in others))
    users = [options.steps * options.batch / s for s in seconds]
    figures = [
        Figure("steps_per_second", "steps/s", [options.steps / s for s in seconds], settings, bound),
        Figure("users_per_second", "users/s", users, settings, per(bound, options.batch)),
        Figure("peak_bytes_of_all_ranks", "bytes", [whole.peak_bytes], settings),
    ]
    if ranks > 1:
        single_seconds, half_seconds = others_seconds
        name = f"users_per_second_{ranks}_ranks_over_1"
        figures.append(Figure(name, "ratio", ratios(single_seconds, seconds), settings | {"batch_of_1": alone.batch}))
        scaled = [ranks * ratio for ratio in ratios(half_seconds, seconds)]
        figures.append(Figure(f"{name}_same_batch_per_rank", "ratio", scaled, settings | {"batch_of_1": half.batch}))
    many_seconds, few_seconds = take_turns(options.repeats, single.run, _side(one_rank, few).run)
    name = f"step_time_{alone.items}_over_{few.items}_items"
    return [*figures, Figure(name, "ratio", ratios(many_seconds, few_seconds), alone.settings)]


def _over_plain_torch(options: TrainBench, ours: World, plain: World) -> list[Figure]:
    """One rank against plain PyTorch, in processes of their own, whose peaks of memory are compared."""
    sides = _side(ours, options), Side(plain, options, plain_step, warmup=options.warmup)
    seconds, plain_seconds = take_turns(options.repeats, *(side.run for side in sides))
    memory = [sides[0].peak_bytes / sides[1].peak_bytes]
    return [
        Figure("users_per_second_over_plain_torch", "ratio", ratios(plain_seconds, seconds), options.settings),
        Figure("peak_bytes_over_plain_torch", "ratio", memory, options.settings),
    ]


def _side(world: World, options: TrainBench) -> Side:
    return Side(world, options, sharded_step, warmup=options.warmup)

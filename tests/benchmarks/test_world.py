from dataclasses import replace

from dist_imsr.benchmarks.options import WorldOptions
from dist_imsr.benchmarks.world import World, start_worlds, take_turns

OPTIONS = WorldOptions(device="cpu", ranks=2)


class Counter:
    def __init__(self, topology, first):
        self.value = first + topology.rank

    def add(self, amount):
        self.value += amount
        return self.value


def test_workers_of_one_world_have_their_own_state():
    with World(OPTIONS) as world:
        one, other = world.start(Counter, 0), world.start(Counter, 10)
        assert one.call(Counter.add, 1) == [1, 2]
        assert other.call(Counter.add, 1) == [11, 12]
        seconds, results = one.timed(Counter.add, 5)
        assert seconds > 0
        assert results == [6, 7]
        assert other.seconds(Counter.add, 0) > 0


def test_worlds_start_together_and_can_end_early():
    with start_worlds(OPTIONS, replace(OPTIONS, ranks=1)) as (many, single):
        with many:
            assert many.start(Counter, 0).call(Counter.add, 0) == [0, 1]
        assert single.start(Counter, 0).call(Counter.add, 0) == [0]


def test_sides_swap_their_turns():
    order = []
    sides = [lambda: order.append("one") or [1.0], lambda: order.append("other") or [2.0]]
    assert take_turns(3, *sides) == [[[1.0]] * 3, [[2.0]] * 3]
    assert order == ["one", "other", "other", "one", "one", "other"]

import logging
from unittest.mock import patch

import numpy as np
import pytest
import torch

from dist_imsr.phases import OTHER, Clock, Phase, clock

CPU = torch.device("cpu")
MIB = 2**20


@pytest.fixture
def at():
    """Advances a fake clock by some seconds."""
    now = [100.0]
    with patch("time.perf_counter", lambda: now[0]):

        def advance(seconds):
            now[0] += seconds

        yield advance


def test_outermost_phases_and_the_rest_add_up(at):
    clock.start(CPU)
    at(1)
    for _ in range(2):
        with Phase("training"):
            at(2)
            with Phase("lookup"):
                at(4)
        at(8)
    Phase("test")(at)(16)
    assert clock.stop().seconds == {OTHER: 17, "training": 12, "training/lookup": 8, "test": 16}


def test_a_phase_switches_to_others(at):
    clock.start(CPU)
    clock.switch_to("nothing")  # no phase is open
    with Phase("training"):
        clock.switch_to("outermost")
        with Phase("backward"):
            at(1)
            clock.switch_to("all-to-all")
            at(2)
            clock.switch_to("optimizer")
            at(4)
        with Phase("all-to-all"):
            at(8)
    seconds = clock.stop().seconds
    parts = {f"training/{name}": value for name, value in (("backward", 1), ("all-to-all", 10), ("optimizer", 4))}
    assert seconds == {OTHER: 0, "training": 15, **parts}


def test_an_error_ends_its_phases(at):
    clock.start(CPU)

    @Phase("training")
    @Phase("lookup")
    def fail():
        at(1)
        raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert clock.stop().seconds == {OTHER: 0, "training": 1, "training/lookup": 1}
    clock.start(CPU)
    assert clock.stop().seconds == {OTHER: 0}


def test_the_end_of_a_long_phase_without_progress_is_logged(at, caplog):
    caplog.set_level(logging.DEBUG, "dist_imsr")
    with Phase("before the start"):
        at(60)
    clock.start(CPU)
    for name, shown, seconds in (("short", False, 1), ("long", False, 60), ("shown", True, 60)):
        with Phase(name, shown), Phase("part"):
            at(seconds)
    clock.stop()
    records = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert records == [("DEBUG", "short: 1.000 s"), ("INFO", "long: 60.000 s"), ("DEBUG", "shown: 60.000 s")]


def test_memory_of_each_phase():
    clock.start(CPU)
    with Phase("before"):
        pass
    with Phase("passing"):
        block = np.ones(64 * MIB, np.uint8)
        del block
    with Phase("staying"):
        block = np.ones(64 * MIB, np.uint8)
    with Phase("after"):
        pass
    memory = clock.stop().memory
    before, passing, staying, after = (memory[name] for name in ("before", "passing", "staying", "after"))
    assert passing.peak > before.peak + 60 * MIB
    assert abs(passing.own - before.own) < 8 * MIB
    assert staying.own > passing.own + 60 * MIB
    assert after.own > passing.own + 60 * MIB
    assert before.files > MIB  # the libraries
    assert before.device == 0
    assert block.all()


def test_a_peak_that_cannot_be_reset_does_not_count_for_later_phases(tmp_path):
    def fail_to_reset(name, *mode):
        if name == "/proc/self/clear_refs":
            raise PermissionError(name)
        return open(name, *mode)

    own = Clock()
    with patch("dist_imsr.phases.open", fail_to_reset, create=True):
        own.start(CPU)
        own.enter("passing")
        block = np.ones(64 * MIB, np.uint8)
        del block
        own.leave()
        own.enter("after")
        own.leave()
        memory = own.stop().memory
    assert memory["after"].peak < memory["after"].own + memory["after"].files + 8 * MIB

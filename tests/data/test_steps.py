import itertools
import threading
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torchrec import JaggedTensor

from dist_imsr import devices
from dist_imsr.data.jagged import jagged
from dist_imsr.data.steps import Steps, TensorBatch


@dataclass
class _Numbers(TensorBatch):
    step: int
    values: torch.Tensor
    sequences: JaggedTensor


def _numbers(step, size=3):
    return _Numbers(step, torch.full((size,), step), jagged([step] * step, [step]))


def test_prefetch_raises_and_stops():
    def fails(step):
        if step == 2:
            raise OSError("disk gone")
        return step

    steps = iter(Steps(fails, 5, prefetch=2))
    assert [next(steps), next(steps)] == [0, 1]
    with pytest.raises(OSError, match="disk gone"):
        next(steps)
    for _ in Steps(lambda step: np.zeros(1), 1000, prefetch=2):
        break
    assert not any(thread.name == "prefetch" and thread.is_alive() for thread in threading.enumerate())


def test_each_batch_is_yielded_with_the_next_one(device):
    for steps in (0, 1, 4):
        pairs = list(Steps(_numbers, steps, prefetch=2).on(torch.device(device)))
        assert [batch.step for batch, _ in pairs] == list(range(steps))
        assert all(following is batch for (_, following), (batch, _) in itertools.pairwise(pairs))
        assert steps == 0 or pairs[-1][1] is None
        for batch, _ in pairs:
            assert batch.values.device.type == batch.sequences.values().device.type == device
            assert batch.values.tolist() == [batch.step] * 3
            assert batch.sequences.to_dense()[0].tolist() == [batch.step] * batch.step


def test_a_step_waits_only_for_its_own_copy(monkeypatch):
    order = []
    monkeypatch.setattr(devices, "prefetch_stream", lambda device: order.append("copy") or nullcontext())
    monkeypatch.setattr(devices, "wait_for_prefetch", lambda device, batch: order.append(f"wait {batch.step}"))
    for batch, _ in Steps(_numbers, 3, prefetch=1).on(torch.device("cpu")):
        order.append(f"step {batch.step}")
    assert order == ["copy", "wait 0", "copy", "step 0", "wait 1", "copy", "step 1", "wait 2", "copy", "step 2"]


def test_stopping_early_ends_the_thread(device):
    for _ in Steps(_numbers, 1000, prefetch=2).on(torch.device(device)):
        break
    assert not any(thread.name == "prefetch" and thread.is_alive() for thread in threading.enumerate())


@pytest.mark.cuda
def test_a_batch_is_complete_when_it_is_yielded():
    """The copy of a large batch is complete, and its memory is not reused too early."""
    device, sums = torch.device("cuda", 0), []
    with devices.prefetch_stream(device):
        torch.cuda._sleep(1_000_000_000)  # delays the copies
    for batch, _ in Steps(lambda step: _numbers(step, 1 << 24), 20, prefetch=2).on(device):
        sums.append(batch.values.sum())
        torch.cuda._sleep(10_000_000)  # the device falls behind the host
    assert [int(total) for total in sums] == [step << 24 for step in range(20)]
    devices.synchronize(device)

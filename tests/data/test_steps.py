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


def test_each_batch_comes_with_the_next_one(device):
    for steps in (0, 1, 4):
        met = list(Steps(_numbers, steps, prefetch=2).on(torch.device(device)))
        assert [batch.step for batch, _ in met] == list(range(steps))
        assert all(following is batch for (_, following), (batch, _) in itertools.pairwise(met))
        assert steps == 0 or met[-1][1] is None
        for batch, _ in met:
            assert batch.values.device.type == batch.sequences.values().device.type == device
            assert batch.values.tolist() == [batch.step] * 3
            assert batch.sequences.to_dense()[0].tolist() == [batch.step] * batch.step


def test_no_copy_is_waited_for_but_a_steps_own(monkeypatch):
    order = []
    monkeypatch.setattr(devices, "prefetch_stream", lambda device: order.append("copy") or nullcontext())
    monkeypatch.setattr(devices, "wait_for_prefetch", lambda device, batch: order.append(f"join {batch.step}"))
    for batch, _ in Steps(_numbers, 3, prefetch=1).on(torch.device("cpu")):
        order.append(f"step {batch.step}")
    assert order == ["copy", "join 0", "copy", "step 0", "join 1", "copy", "step 1", "join 2", "copy", "step 2"]


def test_who_stops_early_leaves_no_thread(device):
    for _ in Steps(_numbers, 1000, prefetch=2).on(torch.device(device)):
        break
    assert not any(thread.name == "prefetch" and thread.is_alive() for thread in threading.enumerate())


@pytest.mark.cuda
def test_a_batch_is_whole_when_it_comes():
    """Copies of large batches that are under way are waited for, and their memory is not taken again too early."""
    device, found = torch.device("cuda", 0), []
    with devices.prefetch_stream(device):
        torch.cuda._sleep(1_000_000_000)  # copies begin late
    for batch, _ in Steps(lambda step: _numbers(step, 1 << 24), 20, prefetch=2).on(device):
        found.append(batch.values.sum())
        torch.cuda._sleep(10_000_000)  # and the device falls behind the host
    assert [int(total) for total in found] == [step << 24 for step in range(20)]
    devices.synchronize(device)

import multiprocessing
import os

import deepspeed
import pytest
import torch

from dist_imsr.benchmarks.ranks import LocalRanks
from dist_imsr.processes import _FORKED

_kept = []


def _keep(topology, value):
    _kept.append(value + topology.rank)
    return list(_kept), torch.get_num_threads()


def _raise_on_rank_1(topology):
    if topology.rank == 1:
        raise ValueError("rank one is unhappy")


def _die_on_rank_1(topology):
    if topology.rank == 1:
        os._exit(3)


def test_ranks_stay_between_calls():
    with LocalRanks(2, threads=1) as ranks:
        assert ranks.call(_keep, 10) == [([10], 1), ([11], 1)]
        assert ranks.call(_keep, 20) == [([10, 20], 1), ([11, 21], 1)]


def _environment(topology):
    return os.environ["CUDA_VISIBLE_DEVICES"], deepspeed.accelerator.get_accelerator()._name, topology.device.type


def test_ranks_on_the_host_ignore_device_variables(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")  # as on a machine with CUDA devices
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setattr(_FORKED, "Process", multiprocessing.get_context("spawn").Process)  # forks nothing
    with LocalRanks(1) as ranks:
        assert ranks.call(_environment) == [("", "cpu", "cpu")]
    assert (os.environ["DS_ACCELERATOR"], os.environ["CUDA_VISIBLE_DEVICES"]) == ("cuda", "3")


@pytest.mark.parametrize(
    ("function", "text"), [(_raise_on_rank_1, "rank one is unhappy"), (_die_on_rank_1, "died without an answer")]
)
def test_a_rank_that_fails_is_named(function, text):
    with LocalRanks(2) as ranks, pytest.raises(RuntimeError, match=f"(?s)rank 1 of 2 failed.*{text}"):
        ranks.call(function)

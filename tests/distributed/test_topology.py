import os

import pytest
import torch

from dist_imsr import devices
from dist_imsr.distributed.command import Refusal
from dist_imsr.distributed.topology import Topology, check_devices, connect, read_topology, thread_count
from dist_imsr.processes import free_port
from tests.ranks import run_ranks


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_every_bucket_has_one_owner(world_size):
    owned = [list(Topology(rank, world_size, 1, torch.device("cpu")).buckets(7)) for rank in range(world_size)]
    assert [bucket for buckets in owned for bucket in buckets] == list(range(7))
    assert max(map(len, owned)) - min(map(len, owned)) <= 1


def test_too_few_buckets_are_refused():
    with pytest.raises(ValueError, match=r"2 buckets .* 3 ranks.*--buckets 3"):
        Topology(0, 3, 3, torch.device("cpu")).buckets(2)


def _collect(topology):
    summed = topology.sum(torch.tensor([1, topology.rank]))
    return summed.tolist(), topology.gather(torch.tensor([[topology.rank]])).tolist()


def test_collectives():
    assert run_ranks(3, _collect) == [([3, 3], [[[0]], [[1]], [[2]]])] * 3


@pytest.mark.parametrize(
    ("cores", "threads"),
    [
        ([("one", {0, 1, 2, 3})], [4]),
        ([("one", {0, 1, 2, 3})] * 2, [2, 2]),
        ([("one", {0, 1, 2})] * 4, [1, 1, 1, 1]),
        ([("one", {0, 1}), ("other", {0, 1})], [2, 2]),
        ([("one", {0, 1}), ("one", {2, 3})], [2, 2]),  # bound by the launcher
        ([("one", {0, 1, 2, 3}), ("one", {0, 1})], [2, 1]),
    ],
)
def test_ranks_that_may_run_on_the_same_cores_share_them(cores, threads):
    assert [thread_count(rank, cores) for rank in range(len(cores))] == threads


def _threads_without_the_variable(topology, port):
    torch.distributed.destroy_process_group()
    os.environ["MASTER_PORT"] = str(port)  # the old port may still be in use
    del os.environ["OMP_NUM_THREADS"]
    connect()
    return torch.get_num_threads()


@pytest.mark.parametrize("world_size", [1, 2])
def test_ranks_take_their_shares_unless_the_variable_has_a_number(world_size):
    cores = [("here", os.sched_getaffinity(0))] * world_size
    wanted = [thread_count(rank, cores) for rank in range(world_size)]
    assert run_ranks(world_size, _threads_without_the_variable, free_port(), fresh=True) == wanted


_FOUR = {"RANK": "7", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}


@pytest.fixture
def machine(monkeypatch):
    """The topology of the last of four ranks on a machine with some number of GPUs."""

    def with_devices(count):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        return read_topology()

    monkeypatch.delenv("DS_ACCELERATOR")
    for name, value in _FOUR.items():
        monkeypatch.setenv(name, value)
    return with_devices


@pytest.mark.parametrize(
    ("devices", "device", "local_world_size"), [(0, "cpu", 4), (4, "cuda:3", 4), (8, "cuda:3", 4), (1, "cuda:0", 1)]
)
def test_the_device_of_a_rank(machine, devices, device, local_world_size):
    assert machine(devices) == Topology(7, 8, local_world_size, torch.device(device))


def test_fewer_gpus_than_ranks_are_refused_by_every_rank(machine, monkeypatch):
    for rank in range(4):  # also those that could have a GPU
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        with pytest.raises(ValueError, match="4 ranks of a machine cannot share 2 GPUs"):
            machine(2)


def test_a_local_rank_that_is_left_over(machine, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert machine(1) == Topology(0, 1, 1, torch.device("cuda:0"))
    with pytest.raises(ValueError, match="LOCAL_RANK=3 has no GPU among 2: unset it"):
        machine(2)


def test_ds_accelerator_cpu_keeps_ranks_on_the_cpu(machine, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert machine(1) == Topology(7, 8, 4, torch.device("cpu"))


def test_one_gpu_for_each_rank_or_none_for_all_is_accepted():
    check_devices([("one", "a"), ("one", "b"), ("other", "c"), ("other", "d")])
    check_devices([("one", None), ("one", None)])


def test_a_mix_of_ranks_with_and_without_gpus_is_refused():
    with pytest.raises(Refusal, match="ranks 0 of one and 1 of other"):
        check_devices([("one", "a"), ("other", None)])


def _connect_again(topology, port):
    """As from a launcher that starts more ranks than there are GPUs, and gives all of them the same one."""
    torch.distributed.destroy_process_group()
    os.environ["MASTER_PORT"] = str(port)  # the old port may still be in use
    devices.device_uuid = lambda device: "GPU-0"
    try:
        connect()
    except Refusal as error:
        return str(error)


def test_two_ranks_on_one_gpu_are_refused_by_every_rank():
    errors = run_ranks(2, _connect_again, free_port(), fresh=True)
    assert errors[0] == errors[1]
    assert "ranks 0 and 1 share a GPU of " in errors[0]
    assert "start one rank for each GPU" in errors[0]

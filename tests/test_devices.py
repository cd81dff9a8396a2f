from types import SimpleNamespace

import pytest
import torch
from torch.profiler import ProfilerActivity

from dist_imsr import devices

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def test_the_cpu_calls_nothing_of_cuda(monkeypatch):
    for name in ("synchronize", "max_memory_allocated", "reset_peak_memory_stats", "mem_get_info", "Stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: pytest.fail(f"{name} was called"))
    devices.synchronize(CPU)
    devices.reset_peak_bytes(CPU)
    assert not devices.is_cuda(CPU)
    assert devices.peak_bytes(CPU) == 0
    assert devices.memory_bytes(CPU) is None
    assert devices.free_bytes(CPU) is None
    assert devices.profiler_activities(CPU) == [ProfilerActivity.CPU]
    tensor = torch.ones(3)
    assert devices.pin(tensor, CPU) is tensor
    with devices.prefetch_stream(CPU):
        result = tensor + 1
    devices.wait_for_prefetch(CPU, result, object())  # its record_stream would be missing
    assert result.tolist() == [2, 2, 2]


def test_free_memory_includes_the_allocators_cache(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 30)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 50)
    assert devices.memory_bytes(CUDA) == 1000
    assert devices.free_bytes(CUDA) == 140
    assert devices.peak_bytes(CUDA) == 50
    assert devices.profiler_activities(CUDA) == [ProfilerActivity.CPU, ProfilerActivity.CUDA]


def _tf32_settings():
    settings = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.get_float32_matmul_precision()  # torch refuses it where its settings contradict each other
    return settings


@pytest.mark.parametrize("tf32", [True, False])
def test_the_matmul_precision_is_set_inside_and_restored_outside(tf32):
    before = _tf32_settings()
    with devices.matmul_precision(CUDA, tf32):
        assert _tf32_settings() == (tf32, tf32)
        with devices.matmul_precision(CUDA, not tf32):
            assert _tf32_settings() == (not tf32, not tf32)
        assert _tf32_settings() == (tf32, tf32)
        with devices.matmul_precision(CPU, not tf32):
            assert _tf32_settings() == (tf32, tf32)
    assert _tf32_settings() == before
    with pytest.raises(ZeroDivisionError), devices.matmul_precision(CUDA, tf32):
        raise ZeroDivisionError
    assert _tf32_settings() == before


def test_the_current_stream_waits_for_the_side_stream_and_keeps_its_results(monkeypatch):
    waited, side = [], object()
    current = SimpleNamespace(wait_stream=waited.append)
    monkeypatch.setattr(devices, "_side_stream", lambda _: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: current)
    recorded = []
    results = [SimpleNamespace(record_stream=recorded.append) for _ in range(2)]
    devices.wait_for_prefetch(CUDA, *results)
    assert waited == [side]
    assert recorded == [current, current]


@pytest.mark.cuda
def test_products_in_tf32_are_rounded_and_others_are_not():
    one, other = (torch.randn(512, 512, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    exact = one.double() @ other.double()

    def error(tf32):
        with devices.matmul_precision(CUDA, tf32):
            return ((one.cuda() @ other.cuda()).cpu() - exact).abs().max()

    assert error(False) < 1e-3  # sums of 512 products of size 1, with 24 bits
    assert 3e-3 < error(True) < 1  # with 11; Ampere and later have it


@pytest.mark.cuda
def test_work_after_the_wait_sees_the_results_of_the_side_stream():
    """A chain of products and copies of 256 MB takes many times longer than its submission."""
    numbers = torch.zeros(64 << 20)
    pinned, eye = devices.pin(numbers, CUDA), torch.eye(2048, device=CUDA)
    assert pinned.is_pinned()
    devices.synchronize(CUDA)  # the side stream does not wait for the main one
    for turn in range(1, 9):
        pinned.fill_(turn)
        with devices.prefetch_stream(CUDA):
            slow = eye
            for _ in range(20):
                slow = slow @ eye
            copied = pinned.to(CUDA, non_blocking=True)
            copied.add_(slow[0, 0])
        devices.wait_for_prefetch(CUDA, copied, slow)
        total = copied.sum(dtype=torch.float64)  # submitted at once, while the chain still runs
        del copied, slow  # their memory must not be reused while the sum reads it
        with devices.prefetch_stream(CUDA):
            reused = torch.full_like(numbers, -1.0, device=CUDA)
        assert total.item() == (turn + 1) * len(numbers)
        devices.wait_for_prefetch(CUDA, reused)


@pytest.mark.cuda
def test_the_side_stream_runs_concurrently_and_in_order():
    device, eye = CUDA, torch.eye(4096, device=CUDA)
    with devices.prefetch_stream(device):
        torch.mm(eye, eye)  # the first product of a stream initializes cuBLAS
    devices.synchronize(device)
    with devices.prefetch_stream(device):
        side = torch.cuda.current_stream(device)
        chain = eye
        for _ in range(100):
            chain = chain @ eye
        done = torch.cuda.Event()
        done.record()
    assert side != torch.cuda.current_stream(device)
    assert not done.query()  # nothing waited for it
    with devices.prefetch_stream(device):  # after the earlier work of the side stream
        later = torch.cuda.Event()
        later.record()
    later.synchronize()
    assert done.query()
    devices.wait_for_prefetch(device, chain)
    assert torch.equal(chain, eye)


@pytest.mark.cuda
def test_memory_is_counted(monkeypatch):
    whole = 1 << 40  # a device that no other process uses
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (whole - torch.cuda.memory_reserved(CUDA), whole))
    devices.reset_peak_bytes(CUDA)
    before, free = devices.peak_bytes(CUDA), devices.free_bytes(CUDA)
    tensor = torch.ones(64 << 20, device=CUDA)
    size = 4 * len(tensor)
    assert devices.peak_bytes(CUDA) - before >= size
    assert free - devices.free_bytes(CUDA) == size
    del tensor
    assert devices.free_bytes(CUDA) == free  # in the allocator's cache
    assert devices.peak_bytes(CUDA) - before >= size
    devices.reset_peak_bytes(CUDA)
    assert devices.peak_bytes(CUDA) - before < size

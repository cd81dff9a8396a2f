from contextlib import contextmanager
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


def test_copies_to_the_host_have_their_own_memory_and_the_rows_in_order():
    tensor = torch.arange(12.0).view(4, 3)
    copy, rows = devices.copy_to_host(tensor), devices.copy_to_host(tensor, torch.tensor([2, 0]))
    devices.wait_for_copies(CPU)
    tensor.zero_()
    devices.copies_done(CPU)()
    assert copy.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert rows.tolist() == [[6, 7, 8], [0, 1, 2]]


class _Streams:
    """Streams that record what is submitted to them; kernels and copies run at once."""

    def __init__(self, monkeypatch):
        self.log, self.name, empty = [], "current", torch.empty
        self.copying = self._named("copying")
        monkeypatch.setattr(devices, "is_cuda", lambda _: True)
        monkeypatch.setattr(devices, "pin", lambda tensor, _: tensor)
        monkeypatch.setattr(devices, "_copy_stream", lambda _: self.copying)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: self._named("current"))
        monkeypatch.setattr(torch.cuda, "stream", self._entered)
        monkeypatch.setattr(torch, "empty", lambda *args, pin_memory, **options: self._pinned(empty(*args, **options)))
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda _, stream: self.log.append(f"used by {stream.name}"))

    def _named(self, name):
        event = SimpleNamespace(synchronize=lambda: self.log.append("the host waits"))
        return SimpleNamespace(
            name=name,
            wait_stream=lambda other: self.log.append(f"{name} waits for {other.name}"),
            record_event=lambda: self.log.append(f"an event of {name}") or event,
        )

    def _pinned(self, tensor):
        self.log.append("pinned")
        return tensor

    @contextmanager
    def _entered(self, stream):
        self.log.append(f"on {stream.name}")
        yield


@pytest.mark.parametrize("rows", [None, torch.tensor([4, 0, 3])])
def test_a_copy_follows_the_current_stream_which_waits_for_it(monkeypatch, rows):
    tensor, streams = torch.randn(5, 6), _Streams(monkeypatch)
    monkeypatch.setattr(devices, "_GATHERED", 2 * 6 * 4)  # two rows at a time
    copy = devices.copy_to_host(tensor, rows)
    devices.wait_for_copies(CUDA)
    devices.copies_done(CUDA)()
    assert torch.equal(copy, tensor if rows is None else tensor[rows])
    assert copy.data_ptr() != tensor.data_ptr()
    assert streams.log == [
        *("copying waits for current", "pinned", "on copying", "used by copying"),
        *("current waits for copying", "an event of copying", "the host waits"),
    ]


@pytest.mark.cuda
def test_a_copy_is_that_of_its_moment_however_late_it_is():
    """A chain of products before each copy takes many times longer than its submission."""
    numbers, eye, order = (
        torch.zeros(64 << 20, device=CUDA),
        torch.eye(2048, device=CUDA),
        torch.arange(1 << 20).flip(0),
    )
    for turn in range(1, 5):
        slow = eye
        for _ in range(20):
            slow = slow @ eye
        numbers.fill_(turn).mul_(slow[0, 0])
        numbers[0] = -turn
        copy, some = devices.copy_to_host(numbers), devices.copy_to_host(numbers, order)
        assert copy.is_pinned()
        assert some.is_pinned()
        devices.wait_for_copies(CUDA)
        numbers.fill_(-1)  # submitted at once
        devices.copies_done(CUDA)()
        assert copy.sum(dtype=torch.float64).item() == turn * (len(numbers) - 2)
        assert some.sum(dtype=torch.float64).item() == turn * (len(order) - 2)
        assert some[-1] == -turn


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

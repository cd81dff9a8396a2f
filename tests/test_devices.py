from types import SimpleNamespace

import pytest
import torch
from torch.profiler import ProfilerActivity

from dist_imsr import devices

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def test_the_host_is_asked_for_nothing(monkeypatch):
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
        made = tensor + 1
    devices.wait_for_prefetch(CPU, made, object())  # nothing is asked of what was made
    assert made.tolist() == [2, 2, 2]


def test_what_may_still_be_taken_is_what_nobody_has_and_what_the_allocator_keeps(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 30)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 50)
    assert devices.memory_bytes(CUDA) == 1000
    assert devices.free_bytes(CUDA) == 140
    assert devices.peak_bytes(CUDA) == 50
    assert devices.profiler_activities(CUDA) == [ProfilerActivity.CPU, ProfilerActivity.CUDA]


def _products():
    settings = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.get_float32_matmul_precision()  # compilers ask, and torch refuses where its settings contradict each other
    return settings


@pytest.mark.parametrize("tf32", [True, False])
def test_products_are_as_asked_for_inside_and_as_before_outside(tf32):
    before = _products()
    with devices.matmul_precision(CUDA, tf32):
        assert _products() == (tf32, tf32)
        with devices.matmul_precision(CUDA, not tf32):
            assert _products() == (not tf32, not tf32)
        assert _products() == (tf32, tf32)
        with devices.matmul_precision(CPU, not tf32):
            assert _products() == (tf32, tf32)
    assert _products() == before
    with pytest.raises(ZeroDivisionError), devices.matmul_precision(CUDA, tf32):
        raise ZeroDivisionError
    assert _products() == before


def test_work_aside_is_waited_for_and_what_it_made_is_kept(monkeypatch):
    waited, side = [], object()
    here = SimpleNamespace(wait_stream=waited.append)
    monkeypatch.setattr(devices, "_side", lambda _: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: here)
    kept = []
    devices.wait_for_prefetch(
        CUDA, SimpleNamespace(record_stream=kept.append), SimpleNamespace(record_stream=kept.append)
    )
    assert waited == [side]
    assert kept == [here, here]


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
def test_work_after_a_join_sees_what_was_done_aside():
    """A chain of products and copies of 256 MB takes many times what it takes to ask for them."""
    numbers = torch.zeros(64 << 20)
    held, eye = devices.pin(numbers, CUDA), torch.eye(2048, device=CUDA)
    assert held.is_pinned()
    devices.synchronize(CUDA)  # what is aside waits for nobody
    for turn in range(1, 9):
        held.fill_(turn)
        with devices.prefetch_stream(CUDA):
            slow = eye
            for _ in range(20):
                slow = slow @ eye
            made = held.to(CUDA, non_blocking=True)
            made.add_(slow[0, 0])
        devices.wait_for_prefetch(CUDA, made, slow)
        total = made.sum(dtype=torch.float64)  # asked for at once, while the chain still runs
        del made, slow  # their memory must not be taken while the sum reads it
        with devices.prefetch_stream(CUDA):
            taken = torch.full_like(numbers, -1.0, device=CUDA)
        assert total.item() == (turn + 1) * len(numbers)
        devices.wait_for_prefetch(CUDA, taken)


@pytest.mark.cuda
def test_work_aside_goes_on_beside_and_in_its_own_order():
    device, eye = CUDA, torch.eye(4096, device=CUDA)
    with devices.prefetch_stream(device):
        torch.mm(eye, eye)  # the first product of a stream waits for cuBLAS to begin
    devices.synchronize(device)
    with devices.prefetch_stream(device):
        aside = torch.cuda.current_stream(device)
        chain = eye
        for _ in range(100):
            chain = chain @ eye
        done = torch.cuda.Event()
        done.record()
    assert aside != torch.cuda.current_stream(device)
    assert not done.query()  # nobody waited for it
    with devices.prefetch_stream(device):  # after what was begun inside before
        later = torch.cuda.Event()
        later.record()
    later.synchronize()
    assert done.query()
    devices.wait_for_prefetch(device, chain)
    assert torch.equal(chain, eye)


@pytest.mark.cuda
def test_memory_is_counted(monkeypatch):
    whole = 1 << 40  # of a device on which nobody else works
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (whole - torch.cuda.memory_reserved(CUDA), whole))
    devices.reset_peak_bytes(CUDA)
    before, free = devices.peak_bytes(CUDA), devices.free_bytes(CUDA)
    held = torch.ones(64 << 20, device=CUDA)
    taken = 4 * len(held)
    assert devices.peak_bytes(CUDA) - before >= taken
    assert free - devices.free_bytes(CUDA) == taken
    del held
    assert devices.free_bytes(CUDA) == free  # the allocator keeps it
    assert devices.peak_bytes(CUDA) - before >= taken
    devices.reset_peak_bytes(CUDA)
    assert devices.peak_bytes(CUDA) - before < taken

import torch

from dist_imsr.distributed import host_memory
from dist_imsr.distributed.host_memory import peak_bytes, resize_in_place

CPU = torch.device("cpu")


def test_a_block_is_reused_while_it_is_large_enough(monkeypatch):
    for threshold in (host_memory._OWN_MAPPING, 64):
        monkeypatch.setattr(host_memory, "_OWN_MAPPING", threshold)
        few = torch.arange(12.0).view(4, 3)
        many = resize_in_place(few, 100)
        assert many.shape == (100, 3)
        assert many.data_ptr() != few.data_ptr()
        many.copy_(torch.arange(300.0).view(100, 3))
        again = resize_in_place(resize_in_place(many, 2), 100)
        assert again.data_ptr() == many.data_ptr()
        assert torch.equal(again, many)
    assert resize_in_place(many, 150).data_ptr() == many.data_ptr()
    assert resize_in_place(many[1:], 2).data_ptr() not in (many.data_ptr(), many[1:].data_ptr())  # another's block
    assert resize_in_place(torch.zeros(0, 0), 5).shape == (5, 0)


def test_the_peak_counts_memory_in_use_since_the_reset():
    before = peak_bytes(CPU, reset=True)
    block = torch.ones(8 << 20)
    size = block.numel() * block.element_size()
    del block
    assert 0.9 * size < peak_bytes(CPU) - before < 2 * size

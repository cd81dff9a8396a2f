import torch

from dist_imsr.distributed.rows import ShardRows


def test_a_copy_has_its_own_memory_unlike_the_rows():
    table = torch.zeros(6, 2)
    rows = ShardRows(table[2:5], 2, 6)
    copy = rows.host_copy()
    rows.values += 1
    assert table.sum() == 6
    assert copy.values.sum() == 0
    assert (copy.first, copy.total, copy.saved) == (2, 6, True)


def test_the_methods_for_checkpoint_planners():
    (item,) = ShardRows(torch.zeros(3, 2), 2, 6).__create_write_items__("name", None)
    assert item.index.fqn == "name"
    assert item.index.offset == torch.Size([2, 0])
    assert item.tensor_data.size == torch.Size([6, 2])
    assert item.tensor_data.chunk.sizes == torch.Size([3, 2])
    for unsaved in (ShardRows(torch.zeros(0, 2), 2, 6), ShardRows(torch.zeros(3, 2), saved=False)):
        assert unsaved.__create_write_items__("name", None) == []
    assert len(ShardRows(torch.zeros(3, 2), saved=False).__create_chunk_list__()) == 1  # still read
    assert ShardRows(torch.zeros(5)).size() == torch.Size([5])

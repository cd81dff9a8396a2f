"""Small programs that each load one native library and call an operator of it.

The doctor runs them as ``python probes.py NAME``, each in a process of its own, which a broken library may crash. They
import nothing of the project, which need not be installed. Each returns facts about its library, by name.
"""

import json
import os
import sys
from collections.abc import Callable


def _torch() -> dict[str, str]:
    import torch
    import torch.distributed as dist

    assert torch.ones(2, 2).mm(torch.ones(2, 2)).sum() == 8
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    backends = {"gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available()}
    return {
        "devices": ", ".join(names) or f"cpu ({os.cpu_count()} cores)",
        "backends": ", ".join(name for name, available in backends.items() if available) or "none",
        "threads": f"{torch.get_num_threads()} in an operator, {torch.get_num_interop_threads()} between operators, "
        f"OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'unset')}",
    }


def _fbgemm() -> dict[str, str]:
    import fbgemm_gpu  # noqa: F401 (loads the operators)
    import torch
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen as Tables

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    offsets = torch.ops.fbgemm.asynchronous_complete_cumsum(torch.tensor([1, 2], device=device))
    assert offsets.tolist() == [0, 1, 3], offsets
    place = (EmbeddingLocation.DEVICE, ComputeDevice.CUDA) if cuda else (EmbeddingLocation.HOST, ComputeDevice.CPU)
    table = Tables([(4, 4, *place)], optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD, learning_rate=1.0, device=device)
    table.init_embedding_weights_uniform(1.0, 1.0)
    looked_up = table(torch.tensor([0, 1, 2], device=device), offsets)
    assert looked_up.sum() == 12, looked_up
    looked_up.sum().backward()
    rows = table.split_embedding_weights()[0].sum(1)
    assert rows.lt(4).tolist() == [True, True, True, False], rows
    return {"fbgemm_gpu runs": f"jagged and table-batched operators compute on {device.type}"}


def _torchrec() -> dict[str, str]:
    import torch
    import torchrec

    jagged = torchrec.KeyedJaggedTensor.from_lengths_sync(["a", "b"], torch.arange(3), lengths=torch.tensor([1, 2]))
    assert jagged.permute([1, 0]).values().tolist() == [1, 2, 0]
    return {}


def _deepspeed() -> dict[str, str]:
    import deepspeed

    return {"deepspeed accelerator": deepspeed.accelerator.get_accelerator().device_name()}


def _pyarrow() -> dict[str, str]:
    import pyarrow
    import pyarrow.compute

    assert pyarrow.compute.sum(pyarrow.array([1, 2])).as_py() == 3
    return {}


def _duckdb() -> dict[str, str]:
    import duckdb

    assert duckdb.connect().execute("select 42").fetchall() == [(42,)]
    return {}


def _all_to_all(rank: str, world_size: str, rendezvous: str) -> dict[str, str]:
    """One rank of a gloo all-to-all in which rank r sends 10 r + s to rank s."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=int(rank), world_size=int(world_size))
    sent = torch.arange(int(world_size)) + 10 * int(rank)
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent)
    dist.destroy_process_group()
    assert received.tolist() == [10 * sender + int(rank) for sender in range(int(world_size))], received
    return {"received": json.dumps(received.tolist())}


LIBRARIES: dict[str, Callable[[], dict[str, str]]] = {
    "torch": _torch,
    "fbgemm_gpu": _fbgemm,
    "torchrec": _torchrec,
    "deepspeed": _deepspeed,
    "pyarrow": _pyarrow,
    "duckdb": _duckdb,
}


if __name__ == "__main__":
    probes: dict[str, Callable[..., dict[str, str]]] = {**LIBRARIES, "all_to_all": _all_to_all}
    sys.stdout.write("\n" + json.dumps(probes[sys.argv[1]](*sys.argv[2:])) + "\n")

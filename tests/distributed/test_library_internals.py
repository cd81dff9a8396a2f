"""What each private name of a library must do; a failure names what a new version of the library has moved."""

import ast
import importlib
from pathlib import Path

import deepspeed
import pytest
import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    OptimType,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torchrec import EmbeddingCollection, EmbeddingConfig, optim
from torchrec.distributed.planner import Topology as PlannerTopology

from dist_imsr.distributed import library_internals
from dist_imsr.distributed.catalogue import Catalogue, CatalogueConfig
from dist_imsr.distributed.table import UnshardedTable
from tests.ranks import run_ranks

PACKAGE = Path(library_internals.__file__).parents[1]


def _kernel_contract(topology):
    catalogue = Catalogue(CatalogueConfig(), [20], 4, 0, topology)
    table = catalogue._table._module
    assert hasattr(table, "_lookups"), "torchrec: ShardedEmbeddingCollection has no _lookups"
    kernels = library_internals.fused_kernels(table)
    assert [kernel.embedding_specs[0][:2] for kernel in kernels] == [(len(catalogue.rows), 4)], "torchrec: _lookups"
    (kernel,) = kernels
    for name in ("iter", "iter_cpu"):
        assert isinstance(getattr(kernel, name, None), torch.Tensor), f"fbgemm: the kernel has no {name}"
    library_internals.set_update_count(kernel, 41)
    return int(kernel.iter), int(kernel.iter_cpu)


def test_fused_kernels_are_found_and_count_updates():
    assert run_ranks(2, _kernel_contract) == [(41, 41)] * 2


@pytest.mark.parametrize("optimizer", [OptimType.EXACT_ROWWISE_ADAGRAD, OptimType.EXACT_SGD])
def test_rows_are_updated_the_same_way_as_sums(optimizer):
    """One kernel with sums of one row each, one without: the same rows, updates and rows of empty lookups."""
    sides = [
        SplitTableBatchedEmbeddingBagsCodegen(
            [(50, 8, EmbeddingLocation.HOST, ComputeDevice.CPU)],
            pooling_mode=PoolingMode.NONE,
            optimizer=optimizer,
            learning_rate=0.5,
            device="cpu",
        )
        for _ in range(2)
    ]
    library_internals.update_rows_as_sums(sides[1])
    weights = [side.split_embedding_weights()[0] for side in sides]
    torch.manual_seed(0)
    weights[0].normal_()
    weights[1].copy_(weights[0])
    for length in (40, 0, 7):
        items, offsets = torch.randint(20, (length,)), torch.tensor([0, length // 2, length])
        rows = [side(indices=items, offsets=offsets) for side in sides]
        torch.testing.assert_close(*rows)
        assert rows[1].shape == (length, 8)
        gradient = torch.randn(length, 8)
        for one in rows:
            one.backward(gradient)
        torch.testing.assert_close(*weights)


def test_the_planner_counts_the_state_of_the_planned_optimizer():
    def memory(optimizer):
        planner = PlannerTopology(1, "cuda", local_world_size=1, hbm_cap=1 << 40)
        unsharded = UnshardedTable.of("row_wise", optimizer, 0.1, 1_000_000, 64, planner)
        unsharded.plan_without_ranks()
        (option,) = unsharded.planner._best_plan
        return option.total_storage.hbm

    rows = 1_000_000 * 64 * 4
    failed = "torchrec: the planner does not read _optimizer_classes"
    assert memory("adagrad") - memory("sgd") == pytest.approx(rows, rel=0.01), failed
    assert memory("adam") - memory("sgd") == pytest.approx(2 * rows, rel=0.01), failed


def test_the_planned_optimizer_is_set_where_torch_sets_it():
    config = EmbeddingConfig(name="table", embedding_dim=4, num_embeddings=8, feature_names=["id"])
    planned, applied = (EmbeddingCollection(tables=[config]) for _ in range(2))
    for parameter in planned.parameters():
        library_internals.set_planned_optimizer(parameter, optim.Adagrad)
    optim.apply_optimizer_in_backward(optim.Adagrad, applied.parameters(), {})
    for ours, theirs in zip(planned.parameters(), applied.parameters(), strict=True):
        for name in ("_optimizer_classes", "_optimizer_kwargs"):
            assert getattr(ours, name) == getattr(theirs, name), f"torch: {name}"


def _world_group_contract(topology):
    groups = deepspeed.utils.groups
    assert hasattr(groups, "_WORLD_GROUP"), "deepspeed: utils.groups has no _WORLD_GROUP"
    groups._WORLD_GROUP = None
    library_internals.share_world_group()
    return groups._get_data_parallel_group() is dist.group.WORLD


def test_deepspeed_uses_the_shared_world_group():
    assert run_ranks(1, _world_group_contract, fresh=True) == [True]


def _waits(topology):
    """The error of rank 0, which waits for half a second in a collective that rank 1 never joins."""
    library_internals.set_timeout(0.5)
    error = None
    if topology.rank == 0:
        try:
            dist.all_to_all_single(torch.empty(3), torch.zeros(2), [1, 2], [1, 1])
        except RuntimeError as raised:
            error = str(raised)
    return error


def test_collectives_have_the_timeout_that_was_set_last():
    error, _ = run_ranks(2, _waits, fresh=True)
    assert "imed out" in error


def test_the_shared_memory_kernel_is_not_built():
    library_internals.disable_shared_memory_kernel()
    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False
    backend = importlib.import_module("deepspeed.comm.torch")  # deepspeed.comm.torch as an attribute is torch itself
    assert backend.build_shm_op() is None, "deepspeed: build_shm_op does not read __compatible_ops__"


def test_a_fake_world_knows_its_size():
    dist.init_process_group("fake", rank=0, world_size=5, store=library_internals.fake_store())
    try:
        assert dist.get_world_size() == 5
    finally:
        dist.destroy_process_group()


LIBRARIES = ("torch", "torchrec", "fbgemm_gpu", "deepspeed")
PRIVATE_WITHOUT_UNDERSCORE = {"iter_cpu", "__compatible_ops__"}
PYTHON = {"_asdict", "_fields", "_make", "_replace", "_exit", "_actions"}  # named tuples, os._exit, argparse's list


def _is_private(name):
    return name in PRIVATE_WITHOUT_UNDERSCORE or (name.startswith("_") and not name.endswith("__"))


def _library_internals(source):
    """Private attributes that a module reads but does not define, and its imports from libraries' private modules."""
    tree = ast.parse(source)
    defined = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    own = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    defined |= {node.attr for node in own if node.value.id in ("self", "cls")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr) and node.attr not in defined | PYTHON:
            yield ast.unparse(node)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr"):
            name = getattr(node.args[1], "value", "")
            if isinstance(name, str) and _is_private(name):
                yield ast.unparse(node)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            base = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in [".".join([*base, alias.name]) for alias in node.names]:
                library, *parts = name.split(".")
                if library in LIBRARIES and any(map(_is_private, parts)):
                    yield name


def test_no_other_module_reads_private_names_of_the_libraries():
    found = {
        str(path.relative_to(PACKAGE)): names
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != Path(library_internals.__file__) and (names := [*_library_internals(path.read_text())])
    }
    assert found == {}


@pytest.mark.parametrize(
    "source",
    [
        "table._lookups",
        "kernel.iter_cpu.fill_(3)",
        "deepspeed.utils.groups._WORLD_GROUP = None",
        "deepspeed.ops.__compatible_ops__",
        "getattr(parameter, '_optimizer_classes')",
        "from torch.distributed._shard.sharded_tensor import ShardedTensor",
        "from torch.distributed import _remote_device",
        "import torch._dynamo",
    ],
)
def test_private_names_are_recognised(source):
    assert [*_library_internals(source)]

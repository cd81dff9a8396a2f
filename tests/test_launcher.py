import pytest

from dist_imsr.launcher import RankInfo, first_host, is_first_rank, rank_info, variables_of_ranks

_STEP = {
    "SLURM_JOB_ID": "30007",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_NTASKS": "6",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
    "SLURM_STEP_NODELIST": "gpu[007,009-010]",
}


def test_alone():
    assert rank_info({}) == RankInfo()
    assert rank_info({"PATH": "/bin"}).environment["MASTER_PORT"] == "0"


def test_a_batch_script_is_not_a_rank():
    """sbatch sets these variables in the script itself, where SLURM_NTASKS counts processes that do not run."""
    assert (
        rank_info({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8"}) == RankInfo()
    )


def test_deepspeed_calls_the_local_world_size_local_size():
    variables = {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_SIZE": "8"}
    assert rank_info(variables | {"MASTER_ADDR": "n1", "MASTER_PORT": "29501"}) == RankInfo(9, 16, 1, 8, "n1", 29501)


def test_torchrun():
    variables = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "LOCAL_SIZE": "7"}
    assert rank_info(variables | {"MASTER_ADDR": "n1", "MASTER_PORT": "29502"}) == RankInfo(3, 4, 1, 2, "n1", 29502)


def test_srun():
    info = rank_info(_STEP)
    assert info == RankInfo(5, 6, 1, 2, "gpu007", info.port)
    assert 15000 <= info.port < 29000
    assert (
        info.port == rank_info(_STEP | {"SLURM_PROCID": "0"}).port != rank_info(_STEP | {"SLURM_JOB_ID": "30008"}).port
    )


def test_a_users_address_overrides_that_of_slurm():
    info = rank_info(_STEP | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"})
    assert (info.address, info.port) == ("10.0.0.1", 4000)


def test_a_launcher_inside_of_a_step_overrides_the_step():
    info = rank_info(_STEP | {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"})
    assert (info.rank, info.world_size, info.local_world_size) == (1, 2, 2)


def test_a_step_of_one_task_is_a_world_of_one():
    alone = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_STEP_NUM_TASKS": "1"}
    assert rank_info(_STEP | alone | {"SLURM_STEP_TASKS_PER_NODE": "1"}) == RankInfo()


def test_a_single_rank_keeps_its_local_rank():
    assert rank_info({"RANK": "0", "LOCAL_RANK": "3", "WORLD_SIZE": "1"}).local_rank == 3


@pytest.mark.parametrize(
    "left_over",
    [
        {"MASTER_ADDR": "no.such.host", "MASTER_PORT": "29500"},
        {"MASTER_PORT": "nonsense"},
        {"WORLD_SIZE": "2", "LOCAL_RANK": "1"},
        {"RANK": "0"},
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "8", "MASTER_ADDR": "no.such.host", "MASTER_PORT": "1"},
    ],
)
def test_variables_that_promise_no_other_rank_mean_alone(left_over):
    assert rank_info(left_over) == RankInfo()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "abc"}, "RANK=abc is not a number of at least 0: unset RANK"),
        ({"RANK": ""}, "RANK= is not"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1 is not"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE=0 is not a number of at least 1: unset WORLD_SIZE"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2, but WORLD_SIZE=2: unset RANK"),
        ({"RANK": "1"}, "RANK=1, but WORLD_SIZE is not set: unset RANK"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "x"}, "LOCAL_RANK=x is not"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "70000"}, "MASTER_PORT=70000 .* at most 65535"),
    ],
)
def test_variables_that_make_no_rank_are_refused_by_name(variables, message):
    with pytest.raises(ValueError, match=message):
        rank_info(variables)
    assert is_first_rank(variables)  # it prints its errors


def test_the_variables_to_unset():
    assert variables_of_ranks({"RANK": "0", "WORLD_SIZE": "2"}) == "RANK WORLD_SIZE"
    assert variables_of_ranks(_STEP) == "SLURM_STEP_NUM_TASKS"


@pytest.mark.parametrize(
    ("each", "node", "tasks"), [("2(x3),1", 2, 2), ("2(x3),1", 3, 1), ("4,2(x2)", 0, 4), ("8", 0, 8), ("1,12", 1, 12)]
)
def test_tasks_of_a_node(each, node, tasks):
    info = rank_info(_STEP | {"SLURM_STEP_TASKS_PER_NODE": each, "SLURM_NODEID": str(node)})
    assert info.local_world_size == tasks


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("gpu[003-010,012],login1", "gpu003"),
        ("rack[2,4]-node[07-09]", "rack2-node07"),
        ("127.0.0.[1-2]", "127.0.0.1"),
        ("node[5]", "node5"),
    ],
)
def test_first_host(nodes, first):
    assert first_host(nodes) == first

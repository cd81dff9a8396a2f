import pytest

from dist_imsr.launcher import RankInfo, first_host, rank_info

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
    """sbatch sets these in the script itself, where SLURM_NTASKS counts processes that nobody started."""
    assert (
        rank_info({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8"}) == RankInfo()
    )


def test_deepspeed_tells_the_ranks_of_a_machine_under_a_name_of_its_own():
    told = {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_SIZE": "8"}
    assert rank_info(told | {"MASTER_ADDR": "n1", "MASTER_PORT": "29501"}) == RankInfo(9, 16, 1, 8, "n1", 29501)


def test_torchrun():
    told = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "LOCAL_SIZE": "7"}
    assert rank_info(told | {"MASTER_ADDR": "n1", "MASTER_PORT": "29502"}) == RankInfo(3, 4, 1, 2, "n1", 29502)


def test_srun():
    told = rank_info(_STEP)
    assert told == RankInfo(5, 6, 1, 2, "gpu007", told.port)
    assert 15000 <= told.port < 29000
    assert (
        told.port == rank_info(_STEP | {"SLURM_PROCID": "0"}).port != rank_info(_STEP | {"SLURM_JOB_ID": "30008"}).port
    )


def test_what_a_user_exports_comes_before_what_slurm_gives():
    told = rank_info(_STEP | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"})
    assert (told.address, told.port) == ("10.0.0.1", 4000)


def test_a_launcher_inside_of_a_step_comes_before_the_step():
    told = rank_info(_STEP | {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"})
    assert (told.rank, told.world_size, told.local_world_size) == (1, 2, 2)


def test_a_step_of_one_task_is_alone():
    alone = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_STEP_NUM_TASKS": "1"}
    assert rank_info(_STEP | alone | {"SLURM_STEP_TASKS_PER_NODE": "1"}) == RankInfo()


def test_a_rank_alone_keeps_the_device_that_it_was_given():
    assert rank_info({"RANK": "0", "LOCAL_RANK": "3", "WORLD_SIZE": "1"}).local_rank == 3


@pytest.mark.parametrize(
    ("each", "node", "tasks"), [("2(x3),1", 2, 2), ("2(x3),1", 3, 1), ("4,2(x2)", 0, 4), ("8", 0, 8), ("1,12", 1, 12)]
)
def test_tasks_of_a_node(each, node, tasks):
    told = rank_info(_STEP | {"SLURM_STEP_TASKS_PER_NODE": each, "SLURM_NODEID": str(node)})
    assert told.local_world_size == tasks


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

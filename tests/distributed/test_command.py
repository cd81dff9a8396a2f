import contextlib
import io
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from dist_imsr.distributed import command
from tests.ranks import run_ranks


def _asks_of_a_silent_rank(topology):
    """Rank 0 asks rank 1 for two sums at a time, and waits for one of them: what it tells, by which."""
    told = []
    for waited in range(2):
        group = dist.new_group(timeout=timedelta(seconds=3))
        dist.barrier(group)

        def work(group=group, waited=waited):
            asked = []
            for _ in range(2):
                asked.append(dist.all_reduce(torch.zeros(1), group=group, async_op=True))
                time.sleep(0.2)
            asked[waited].wait()

        if topology.rank == 0:
            with contextlib.redirect_stderr(io.StringIO()) as said:
                told.append((command.run("train", work, "stopped"), said.getvalue()))
        dist.barrier()
    return told


def test_a_silent_rank_is_told_of_whatever_was_waited_for():
    line = "train: rank 0: another rank said nothing for timeout_seconds: see whether it hangs\n"
    assert run_ranks(2, _asks_of_a_silent_rank)[0] == [(command.FAILED, line)] * 2

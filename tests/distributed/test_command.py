import contextlib
import io
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from dist_imsr.distributed import command
from tests.ranks import run_ranks


def _collectives_with_a_silent_rank(topology):
    """Rank 0 starts two collectives, which rank 1 never joins, and waits for the first or the second: its messages."""
    results = []
    for waited in range(2):
        group = dist.new_group(timeout=timedelta(seconds=3))
        dist.barrier(group)

        def work(group=group, waited=waited):
            pending = []
            for _ in range(2):
                pending.append(dist.all_reduce(torch.zeros(1), group=group, async_op=True))
                time.sleep(0.2)
            pending[waited].wait()

        if topology.rank == 0:
            with contextlib.redirect_stderr(io.StringIO()) as stderr:
                results.append((command.run("train", work, "stopped"), stderr.getvalue()))
        dist.barrier()
    return results


def test_a_rank_that_does_not_answer_is_reported():
    reason = "another rank did not answer in time (timeout_seconds, step_timeout_seconds): check whether it hangs"
    line = f"train: rank 0: {reason}\n"
    assert run_ranks(2, _collectives_with_a_silent_rank, fresh=True)[0] == [(command.FAILED, line)] * 2


def test_variables_that_make_no_rank_end_in_one_line(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "abc")
    assert command.run("train", lambda: None, "stopped") == command.BAD_INPUT
    assert capsys.readouterr().err.startswith("train: RANK=abc is not a number")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (command.NotStarted("no rank 0", command.BAD_INPUT), command.BAD_INPUT),
        (ConnectionError("no s3"), command.FAILED),
    ],
)
def test_every_rank_says_why_it_did_not_start(error, status, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")

    def work():
        raise error

    assert command.run("train", work, "stopped") == status
    assert capsys.readouterr().err == f"train: rank 1: {error}\n"

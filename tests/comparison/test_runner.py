import pytest

from dist_imsr.comparison.runner import failure_reason


@pytest.mark.parametrize(
    ("status", "message", "reason"),
    [
        (
            1,
            "12:00:00 span 0\ntrain: the loss is not finite\ntrain: rank 1: another rank ended; its\n",
            "the loss is not finite (status 1)",
        ),
        (1, "Traceback\nRuntimeError: odd\n\n", "RuntimeError: odd (status 1)"),
        (1, "", "its log is empty (status 1)"),
        (-9, "span 0, epoch 1\n", "killed by SIGKILL (out of memory?); its last line: span 0, epoch 1"),
        (-15, "x", "killed by SIGTERM; its last line: x"),
    ],
)
def test_the_reason_is_the_commands_own_message(status, message, reason):
    assert failure_reason(status, message) == reason

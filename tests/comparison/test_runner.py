import pytest

from dist_imsr.comparison.runner import reason_of


@pytest.mark.parametrize(
    ("status", "said", "reason"),
    [
        (
            1,
            "12:00:00 span 0\ntrain: the loss is not finite\ntrain: rank 1: another rank ended; its\n",
            "the loss is not finite (status 1)",
        ),
        (1, "Traceback\nRuntimeError: odd\n\n", "RuntimeError: odd (status 1)"),
        (1, "", "it said nothing (status 1)"),
        (-9, "span 0, epoch 1\n", "killed by SIGKILL (out of memory?); its last line: span 0, epoch 1"),
        (-15, "x", "killed by SIGTERM; its last line: x"),
    ],
)
def test_the_reason_is_the_commands_own_word(status, said, reason):
    assert reason_of(status, said) == reason

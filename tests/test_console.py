import os
import signal

import pytest

from dist_imsr.console import run_writer


@pytest.fixture(autouse=True)
def _handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_a_library_reports_as_its_own_error_is_one(sent, capfd):
    def work(_):
        try:
            os.kill(os.getpid(), sent)
        except KeyboardInterrupt:
            raise RuntimeError("Query interrupted") from None

    assert run_writer("x.py", work) == 130
    assert capfd.readouterr().err == "x.py: stopped; nothing was written\n"


@pytest.mark.parametrize(("error", "status"), [(ValueError("a: b"), 2), (OSError("full"), 1)])
def test_failures_are_a_line(error, status, capfd):
    def work(_):
        raise error

    assert run_writer("x.py", work) == status
    assert capfd.readouterr().err == f"x.py: {error}\n"


def test_a_bug_is_no_stop():
    def work(_):
        raise RuntimeError("bug")

    with pytest.raises(RuntimeError, match="bug"):
        run_writer("x.py", work)

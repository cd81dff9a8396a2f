"""The peak of a process's host memory, by torch's profiler."""

from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
from torch.profiler import ProfilerActivity, profile

MEASURED = "measured"


@contextmanager
def memory_profile():
    """Profiles allocations, from before anything is allocated that the measured part frees.

    Yields:
        A function to be called afterwards: the most bytes under ``record_function(MEASURED)`` above those at its
        beginning, without blocks of the size that it is called with.
    """
    events = []

    def peak_bytes(without=0):
        ordered = sorted(events, key=lambda event: event.start_ns())
        begin = next(event.start_ns() for event in ordered if event.name() == MEASURED)
        sizes = [event.nbytes() for event in ordered if event.name() == "[memory]" and event.start_ns() >= begin]
        return int(np.cumsum([0, *(size for size in sizes if not without or abs(size) != without)]).max())

    with patch.dict("os.environ", KINETO_LOG_LEVEL="99"):  # else it logs that it begins and ends
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            yield peak_bytes
    events += profiler.profiler.kineto_results.events()

import io

import duckdb
import pytest
from rich.console import Console

from dist_imsr.data import workspace
from dist_imsr.data.workspace import Database, ProgressDisplay


def test_a_long_phase_prints_the_time_left_without_a_terminal(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(workspace.time, "perf_counter", lambda: now[0])
    output = io.StringIO()
    with ProgressDisplay(Console(file=output, width=80)) as display, display.phase("sort") as progress:
        for seconds, done in ((1, 0.1), (40, 0.0), (41, 0.25), (50, 0.3), (100, 0.5)):
            now[0] = float(seconds)
            progress(done)
    assert output.getvalue().splitlines() == [
        "sort: 25%, 41 s, 123 s left",
        "sort: 50%, 100 s, 100 s left",
        "sort: 100.0 s",
    ]


def test_the_memory_limit_can_be_lowered(tmp_path):
    with Database(tmp_path, 512 << 20, 1) as database:
        assert database.run("SELECT current_setting('memory_limit')") == [("512.0 MiB",)]
        database.set_memory_limit(64 << 20)
        assert database.run("SELECT current_setting('memory_limit')") == [("64.0 MiB",)]
        assert database.run("SELECT count(*) FROM (SELECT range FROM range(3_000_000) ORDER BY hash(range))") == [
            (3_000_000,)
        ]
        with pytest.raises(duckdb.OutOfMemoryException):
            database.run("SELECT len(list(range)) FROM range(30_000_000)")

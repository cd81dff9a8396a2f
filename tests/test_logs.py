import re
import subprocess
import sys

import pytest

_PROGRAM = """
import logging, sys, warnings
from pathlib import Path
from dist_imsr import logs

logs.start(int(sys.argv[1]))
library, ours = logging.getLogger("library"), logging.getLogger("dist_imsr.part")
for number in range(3):
    library.warning("takes %s", "long")
    warnings.warn("old", UserWarning)
    ours.info("epoch")
library.info("chatter")
ours.debug("detail")
folder = Path(sys.argv[2])
logs.keep(folder)
logs.at(span=3, step=17)
ours.error("lost")
ours.info("finished")
"""


def _run(rank, folder):
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(rank), str(folder)], capture_output=True, text=True, check=True
    )
    return [line[len("00:00:00 ") :] for line in done.stderr.splitlines() if re.match(r"\d\d:", line)]


def _lines(path):
    return path.read_text().splitlines()


def test_rank_0_logs_each_warning_of_a_library_once(tmp_path):
    lines = _run(0, tmp_path)
    assert sum("takes long" in line for line in lines) == 1
    assert sum("UserWarning: old" in line for line in lines) == 1
    assert [line for line in lines if "takes" not in line and "old" not in line] == [
        *["epoch"] * 3,
        *["lost", "finished"],
    ]


def test_other_ranks_log_only_errors(tmp_path):
    assert _run(2, tmp_path) == ["rank 2: lost"]


@pytest.mark.parametrize("rank", [0, 2])
def test_each_rank_logs_everything_to_its_own_file(tmp_path, rank):
    _run(rank, tmp_path)
    _run(rank, tmp_path)  # appends to it
    (path,) = (tmp_path / "logs").iterdir()
    assert path.name == f"rank=000{rank}.log"
    lines = [line for line in _lines(path) if re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", line)]
    early, late = f"rank {rank} span - step - ", f"rank {rank} span 3 step 17 "
    assert sum(f"{early}WARNING library: takes long" in line for line in lines) == 2 * 3
    assert sum(f"{early}INFO dist_imsr.part: epoch" in line for line in lines) == 2 * 3
    assert sum(f"{early}DEBUG dist_imsr.part: detail" in line for line in lines) == 2
    assert sum(f"{late}ERROR dist_imsr.part: lost" in line for line in lines) == 2
    assert not any("chatter" in line for line in lines)


def test_a_disk_error_ends_the_file_but_not_the_run(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "rank=0000.log").symlink_to("/dev/full")
    lines = _run(0, tmp_path)
    assert sum("rank=0000.log ends here: [Errno 28] No space left on device" in line for line in lines) == 1
    assert lines[-2:] == ["lost", "finished"]

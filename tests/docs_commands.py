"""The commands in README and docs, and how each is run or why it is not."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
_TOOLS = ("python", "deepspeed", "torchrun", "make", "sbatch", "pip", "timeout", "srun", "source", "RANKS_PER_NODE=4")


class Command(NamedTuple):
    """A command line on a page."""

    page: str
    line: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.line, comments=True)

    @property
    def script(self) -> str:
        """The script of launch/ that it starts; empty for none."""
        names = [word.removeprefix("launch/") for word in self.words if re.fullmatch(r"launch/\w+\.py", word)]
        return names[0] if names else ""

    @property
    def arguments(self) -> list[str]:
        """Those of the script."""
        return self.words[self.words.index(f"launch/{self.script}") + 1 :]


def commands() -> list[Command]:
    """The command lines in blocks of code, each once, in order; continued lines are joined."""
    found: dict[str, Command] = {}
    for command in _commands():
        found.setdefault(command.line, command)
    return list(found.values())


def _commands() -> Iterator[Command]:
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        for _, language, body in _FENCE.findall(page.read_text()):
            if language in ("", "sh", "bash"):
                joined = re.sub(r"\\\n\s*", "", body)
                for line in map(str.strip, joined.splitlines()):
                    if line.split(" ")[0] in _TOOLS:
                        yield Command(name, line)


NOT_RUN = {
    r"--engine spark|^pip ": "needs Spark and a Java runtime; tests/data/test_spark.py has them",
    r"s3://": "needs object storage; tests/data/test_remote.py serves one on loopback",
    r"^make |^source ": "installs, or runs what CI runs",
    r"^sbatch |^RANKS_PER_NODE": "needs a cluster; tests/launch/test_slurm.py submits these scripts",
    r"--device cuda|pytest -m cuda|bench\.py kernel": "needs a CUDA device",
    r"configs/scale_|scale_taobao": "takes the disk and the hours of Taobao's size",
    r"bench\.py": "measures for minutes; tests/benchmarks/ runs each with small sizes",
    r"configs/compare_(full|bases|ablation|growth|training|sensitivity)|runs/compare_": (
        "trains for hours; tests/comparison/ runs small ones"
    ),
    r" \.\.\.": "leaves out what stands above it",
    r"/logs/|daily\.yaml": "works on a server's folders; tests/refresh/ runs refreshes",
    r"tests\.report\.screenshots|--format pdf": "needs a browser; tests/report/ has one",
    r"--append data/logs": "is docs/data.md's append, to other data",
    r"--forget_users": "needs a run of these data; tests/data/test_forget.py has one",
    r"runs/demo/": "reads what make demo leaves; tests/report/ reads small runs",
    r"--watch": "goes on until Ctrl-C; tests/report/ stops it",
    r"--since 41": "needs 41 spans; tests/evaluation/test_since.py has few",
    r"--retire_before 30": "needs 30 spans; tests/data/test_retire.py has few",
    r"electronics\.csv|tafeng|retail|complete-journey": "needs a public log; its own tests read it",
    r"8000000": "writes 17 million rows; it runs above with fewer",
    r"drift\.users 4000": "is the next larger one of what runs above it",
    r"doctor\.py": "is run by tests/test_doctor.py",
}
"""Why a command is not run, by what is in its line."""


def reason(command: Command) -> str:
    """Why a command is not run; empty for one that is."""
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, command.line)), "")

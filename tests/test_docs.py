"""README and docs: generated pages are up to date, links lead somewhere, and commands do what they say."""

import gzip
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from dist_imsr.keys import keys_of
from dist_imsr.launcher import RankInfo
from dist_imsr.processes import free_port, new_process
from dist_imsr.registry import extended
from tests.docs_commands import NOT_RUN, PAGES, ROOT, Command, commands, reason

SMALL = {
    "model": {"dim": 8, "interests": 3},
    "batch": {"size": 16, "max_targets": 3, "negatives": 20, "eval_size": 64},
    "training": {"epochs": 2, "incremental_epochs": 1},
}
USERS = 40


def generate():
    return runpy.run_path(str(ROOT / "docs" / "generate.py"))


def test_generated_pages_are_what_the_code_says():
    for path, text in generate()["pages"]().items():
        assert path.read_text() == text, f"{path.relative_to(ROOT)} is stale: python docs/generate.py"


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def anchors(page):
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{target} is no file"
        assert not anchor or anchor in anchors(path), f"{target}: no such heading"


def test_the_site_is_built_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "Sharding and the one schedule" in (tmp_path / "index.html").read_text()


def trees():
    return generate()["COMMANDS"]


COMMANDS = commands()


def test_keys_of_commands_exist():
    found = trees()
    for command in COMMANDS:
        tree = found.get(command.script.removesuffix(".py"))
        if tree is None:
            continue
        known = {key.removesuffix("_") for key in keys_of(extended(tree))}
        sections = {key.rpartition(".")[0] for key in known}
        given = {word[2:].partition("=")[0] for word in command.arguments if word.startswith("--")}
        wrong = {
            key
            for key in given - known - sections - {"config", "import", "help", "print_config"}
            if not key.startswith(("strategy.anchored", "model.pooling"))  # examples bring their own
        }
        assert not wrong, f"{command.page}: {command.line}"


def test_every_reason_is_of_a_command():
    unused = [pattern for pattern in NOT_RUN if not any(re.search(pattern, command.line) for command in COMMANDS)]
    assert not unused


def write_logs(folder):
    """Small logs under the names that the pages use, with two tastes a user."""
    draw = np.random.default_rng(0)

    def rows(begin, end, count, users=range(USERS)):
        moments = np.sort(draw.integers(begin, end, count))
        for user, time in zip(draw.choice(list(users), count), moments, strict=True):
            yield 1000 + user, 5000 + int(user % 7 * 8 + draw.integers(8)), int(time)

    day = 86_400
    begin = 1_511_539_200  # of Taobao's window, and midnight in UTC but for 16 hours
    text = [f"{user},{item},1,pv,{time}" for user, item, time in rows(begin, begin + 8 * day, 3000)]
    (folder / "UserBehavior.csv").write_text("\n".join(text) + "\n")
    later = [f"{user},{item},1,pv,{time}" for user, item, time in rows(begin + 8 * day, begin + 9 * day - 1, 400)]
    (folder / "day.csv").write_text("\n".join(later) + "\n")
    clicks = [f"{user},{item},{time}" for user, item, time in rows(begin, begin + 8 * day, 3000)]
    (folder / "clicks.csv").write_text("uid,sku,ts\n" + "\n".join(clicks) + "\n")
    checkins = [f"{user}\t{item}\t{time}" for user, item, time in rows(begin, begin + 8 * day, 3000)]
    (folder / "checkins.tsv").write_text("\n".join(checkins) + "\n")
    new = 1_767_225_600  # 2026-01-01
    logs = [f"{user},{item},{1000 * time}" for user, item, time in rows(new, new + 8 * day, 3000)]
    (folder / "logs").mkdir()
    with gzip.open(folder / "logs" / "a.csv.gz", "wt") as file:
        file.write("\n".join(logs) + "\n")
    (folder / "users.txt").write_text("1003\n1005\n")


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    """A folder like the project's, where all data and settings are small."""
    folder = tmp_path_factory.mktemp("sandbox")
    for name in ("launch", "examples", "dist_imsr"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "configs").mkdir()
    for path in (ROOT / "configs").glob("*.yaml"):
        settings = yaml.safe_load(path.read_text())
        if path.stem in ("samples", "demo", "drift"):
            for section, keys in SMALL.items():
                settings[section] = settings.get(section, {}) | keys
        if path.stem == "drift_data":
            settings["drift"] |= {"users": 60, "items": 200, "clusters": 10, "interactions": [3000, 1500]}
        if path.stem == "demo":
            settings["data"]["path"] = "data/clicks"
        (folder / "configs" / path.name).write_text(yaml.safe_dump(settings))
    (folder / "configs" / "deepspeed").symlink_to(ROOT / "configs" / "deepspeed")
    write_logs(folder)
    return folder


def rank(folder: str, words: list[str], environment: dict[str, str], log: str) -> None:
    """One process of a command, forked where all libraries are loaded."""
    for standard in (1, 2):
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, standard)
        os.close(descriptor)
    os.chdir(folder)
    os.environ.update(environment)
    sys.argv = words
    sys.path.insert(0, folder)
    runpy.run_path(words[0], run_name="__main__")


def run(command: Command, folder: Path) -> str:
    """Runs a command of launch/ on its ranks; returns what went wrong, empty for nothing."""
    words = command.words
    ranks = int(words[words.index("--num_accelerators") + 1]) if "--num_accelerators" in words else 1
    start = words.index(f"launch/{command.script}")
    arguments = [part for word in words[start + 1 :] for part in (sorted(map(str, expand(folder, word))) or [word])]
    log, port = folder / "log.txt", free_port()
    log.unlink(missing_ok=True)
    processes = []
    for number in range(ranks):
        variables = RankInfo(number, ranks, number, ranks, port=port).environment if ranks > 1 else {}
        processes.append(new_process(rank, (str(folder), [words[start], *arguments], variables, str(log)), cuda=False))
        processes[-1].start()
    for process in processes:
        process.join(120)
    failed = any(process.exitcode != 0 for process in processes)
    return log.read_text()[-2000:] if failed else ""


def expand(folder, word):
    return [path.relative_to(folder) for path in folder.glob(word)] if "*" in word else []


ORDER = (
    *("README.md", "docs/own_log.md", "docs/results.md", "docs/train.md", "docs/serve.md", "docs/extend.md"),
    *("docs/drift.md", "docs/planning.md", "docs/cuda.md", "docs/data.md"),
)


@pytest.mark.timeout(600)
def test_the_commands_run(sandbox):
    """In the order in which a reader would meet them; each one that fails is named with its page."""
    todo = [command for command in COMMANDS if not reason(command)]
    assert {command.page for command in todo} <= set(ORDER)
    failures = []
    for page in ORDER:
        for command in (one for one in todo if one.page == page):
            what = run(command, sandbox)
            if what:
                failures.append(f"{page}: {command.line}\n{what}")
    assert not failures, "\n\n".join(failures)
    assert len(todo) >= 20

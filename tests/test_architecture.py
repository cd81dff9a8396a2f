"""docs/architecture.md names code that exists, and each room imports what that page allows."""

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from dist_imsr.model.extractors import BASE_MODELS
from dist_imsr.strategies import STRATEGIES

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dist_imsr"
PAGE = (ROOT / "docs" / "architecture.md").read_text()
LEAF = "the top level"

ROOMS = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
API = "api"  # the scripts as Python functions: an entry like launch/, imported by the package alone
LEAVES = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", API}
BELOW = {
    "model": set(),
    "data": set(),
    "distributed": {"model", "data"},
    "evaluation": {"model", "data", "distributed"},
    "baselines": {"data", "distributed", "evaluation"},
    "strategies": {"model", "data", "distributed", "evaluation"},
    "training": {"model", "data", "distributed", "evaluation", "baselines", "strategies"},
    "comparison": {"model", "data", "distributed", "evaluation", "baselines", "strategies", "training"},
    "refresh": {"model", "data", "distributed", "evaluation", "strategies", "training"},
    "planning": {"model", "data", "distributed", "evaluation", "strategies", "training"},
    "benchmarks": {"model", "data", "distributed", "evaluation", "strategies", "training", "planning"},
    "report": {"data", "evaluation", "training", "comparison"},
}
"""The rooms that each room may import besides itself."""
LAYERS_OF_REPORT = {"tables": {"figures"}, "figures": {"tables"}}
"""The folders of the report that files of a folder may not import: what is drawn comes from Arrow tables alone."""
LEAVES_OF_MODEL = {"checks", "keys", "registry"}
DATA_OF_DISTRIBUTED = {"batch", "jagged", "user_ids"}
ROOMS_OF_LEAVES = {"preloaded": {"training"}}

REFERENCE = re.compile(r"`(dist_imsr(?:\.\w+)+)(?::(\w+(?:\.\w+)*))?`")


def imports_of(path: Path, root: Path = ROOT) -> set[str]:
    """All modules that a file imports, as names with dots: ``from a import b`` is ``a.b``.

    Imports inside functions and under ``TYPE_CHECKING`` count as well. So does a string that is a module's name, since
    it may be an argument of ``importlib``.
    """
    found, package = set[str](), path.relative_to(root).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {node.value} if re.fullmatch(r"dist_imsr(\.\w+)+", node.value) else set()
    return found


@cache
def imports_by_file() -> dict[Path, set[str]]:
    return {path: imports_of(path) for path in sorted(PACKAGE.rglob("*.py"))}


def arrows() -> Iterator[tuple[Path, str, str, list[str]]]:
    """The imports of the project's own modules: file, its room or `LEAF`, imported name, and the name's parts."""
    for path, names in imports_by_file().items():
        room = path.relative_to(PACKAGE).parts[0] if path.parent != PACKAGE else LEAF
        for name in sorted(names):
            first, *rest = name.split(".")
            if first == "dist_imsr" and rest:
                yield path, room, name, rest
            elif first in ("launch", "tests", "examples"):
                yield path, room, name, [first]


def wrong_arrow(path: Path, room: str, target: list[str]) -> bool:
    """Whether a file of a room may not import a module of the project, ``room`` being `LEAF` for the top level."""
    first, *rest = target
    if first in LEAVES:
        return room == "model" and first not in LEAVES_OF_MODEL
    if first == API:
        return (room, path.stem) != (LEAF, "__init__")
    if first not in ROOMS:  # launch, tests, examples
        return True
    if room == LEAF and path.stem == API:
        return False
    if room == LEAF:
        return first not in ROOMS_OF_LEAVES.get(path.stem, set())
    if room == first == "report":
        return rest[0] in LAYERS_OF_REPORT.get(path.parent.name, set())
    if room == "distributed" and first == "data":
        return rest[0] not in DATA_OF_DISTRIBUTED
    return first not in BELOW[room] | {room}


def numbers(column: str) -> set[int]:
    """1, 2, 3 for ``1-3: text``."""
    first, last = re.match(r"(\d+)(?:-(\d+))?:", column).groups()  # type: ignore[union-attr]
    return set(range(int(first), int(last or first) + 1))


def rows_of(head: str) -> list[list[str]]:
    """The rows of the table of the page whose first column has this head."""
    lines = PAGE.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith(f"| {head} |")) + 2
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


@pytest.mark.parametrize(("module", "name"), sorted(set(REFERENCE.findall(PAGE))))
def test_names_on_the_page_exist(module: str, name: str) -> None:
    value = importlib.import_module(module)
    for part in filter(None, name.split(".")):
        value = getattr(value, part) if hasattr(value, part) else value.__dataclass_fields__[part]


def test_all_names_on_the_page_are_checked() -> None:
    names = re.findall(r"`(dist_imsr[.:][^`]*)`", PAGE)
    assert [name for name in names if not REFERENCE.fullmatch(f"`{name}`")] == []


def test_files_on_the_page_exist() -> None:
    paths = re.findall(r"`((?:dist_imsr|launch|examples|tests|docs|configs)/[\w/.]*)`", PAGE)
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    ("head", "expected"),
    [("equation", range(1, 18)), ("lines of Algorithm 1", range(1, 20)), ("lines of Algorithm 2", range(1, 30))],
)
def test_the_paper_is_on_the_page(head: str, expected: range) -> None:
    rows = rows_of(head)
    listed = sorted(number for label, _ in rows for number in numbers(label))
    assert listed == list(expected)  # each once
    assert [label for label, code in rows if not REFERENCE.search(code)] == []


def test_errata_are_on_the_page() -> None:
    rows = rows_of("erratum")
    numbers = [name.removeprefix("E") for name, *_ in rows]
    assert numbers == sorted(numbers, key=lambda name: (int(name.rstrip("b")), name))
    assert numbers == [*"123", "3b", *"45678", "8b", "9", "10", "11"]
    assert [name for name, *_, code in rows if not REFERENCE.search(code)] == []


def test_all_rooms_and_top_level_modules_are_on_the_page() -> None:
    assert [cell.strip("`/").removeprefix("dist_imsr/") for cell, *_ in rows_of("room")] == [*BELOW, "launch"]
    assert set(BELOW) == ROOMS
    listed = re.search(r"that every room but `model` may import:(.*?)\. A leaf", PAGE, re.DOTALL)
    assert listed is not None
    assert set(re.findall(r"`(\w+)`", listed[1])) == LEAVES


def test_rooms_import_only_what_the_page_allows() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, room, name, target in arrows()
        if wrong_arrow(path, room, target)
    ]
    assert wrong == []


def test_exceptions_of_leaves_are_used() -> None:
    found: dict[str, set[str]] = {}
    for path, room, _, target in arrows():
        if room == LEAF and path.stem != API and target[0] in ROOMS:
            found.setdefault(path.stem, set()).add(target[0])
    assert found == ROOMS_OF_LEAVES


@pytest.mark.parametrize(
    ("path", "statement", "wrong"),
    [
        ("model/base.py", "from dist_imsr.model.interests import Start", False),
        ("model/base.py", "from dist_imsr import registry", False),
        ("model/base.py", "from dist_imsr.devices import is_cuda", True),
        ("model/base.py", "from dist_imsr.data.batch import Batch", True),
        ("data/span.py", "from dist_imsr.phases import Phase", False),
        ("data/span.py", "import dist_imsr.model.base", True),
        ("distributed/recommender.py", "from dist_imsr.data.jagged import pad", False),
        ("distributed/recommender.py", "from dist_imsr.data.dataset import Dataset", True),
        ("distributed/recommender.py", "from ..strategies import base", True),
        ("distributed/recommender.py", "if TYPE_CHECKING:\n    from dist_imsr.strategies.base import Strategy", True),
        ("evaluation/ranking.py", "def late():\n    from dist_imsr.training import run", True),
        ("strategies/imsr.py", "from dist_imsr.evaluation.metrics import Metrics", False),
        ("training/run.py", "importlib.import_module('dist_imsr.comparison.compare')", True),
        ("planning/plan.py", "from dist_imsr.comparison import grid", True),
        ("benchmarks/span.py", "from dist_imsr.planning.plan import make_plan", False),
        ("benchmarks/span.py", "import launch.train", True),
        ("report/figures/groups.py", "from dist_imsr.report.figures.style import Style", False),
        ("report/figures/groups.py", "from dist_imsr.report.tables.groups import groups", True),
        ("report/sections.py", "from dist_imsr.report.tables.groups import groups", False),
        ("training/run.py", "from dist_imsr.report import report", True),
        ("phases.py", "from dist_imsr import devices", False),
        ("phases.py", "from dist_imsr.distributed import topology", True),
        ("api.py", "from dist_imsr.training.run import train", False),
        ("__init__.py", "def __getattr__(name):\n    from dist_imsr import api", False),
        ("training/run.py", "from dist_imsr.api import train", True),
        ("training/run.py", "from dist_imsr import train", True),
    ],
)
def test_wrong_arrows_are_found(
    path: str, statement: str, wrong: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "dist_imsr" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(statement)
    monkeypatch.setattr("tests.test_architecture.PACKAGE", tmp_path / "dist_imsr")
    monkeypatch.setattr("tests.test_architecture.imports_by_file", lambda: {file: imports_of(file, tmp_path)})
    assert [wrong_arrow(*found[:2], found[3]) for found in arrows()] == [wrong]


def components() -> set[str]:
    """The names of the package's strategies and base models, and of their classes and modules."""
    names = set[str]()
    for registry in (STRATEGIES, BASE_MODELS):
        for name, entry in registry.items():
            names |= {name, entry.build.__name__} | ({entry.config.__name__} if entry.config else set())
    return names | {"DynamicRouting", "SelfAttention", "LinearAttention", "MemoryNetwork"}


def named_in(source: str) -> set[str]:
    """All identifiers, attributes and strings of a source; keywords of calls are left out."""
    found = set[str]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found |= set(node.name.split("."))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


def test_the_span_loop_names_no_strategy_and_no_base_model() -> None:
    named = named_in((PACKAGE / "training" / "trainer.py").read_text())
    assert named & components() == set()
    assert named & {"isinstance", "issubclass", "type", "hasattr", "getattr"} == set()


def test_planning_names_no_strategy_and_no_base_model() -> None:
    files = sorted((PACKAGE / "planning").glob("*.py"))
    assert files
    wrong = {path.name: named_in(path.read_text()) & components() for path in files}
    assert {name: found for name, found in wrong.items() if found} == {}


def test_components_are_found_in_a_source() -> None:
    sources = (
        'if config.strategy.name == "imsr": pass',
        "from dist_imsr.strategies import fine_tuning",
        "config.strategy.ader.pool",
        "from dist_imsr.model.routing import DynamicRouting",
    )
    assert [bool(named_in(source) & components()) for source in sources] == [True] * 4
    assert named_in("@dataclass(frozen=True)\nclass Plan: pass") & components() == set()

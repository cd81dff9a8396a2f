"""Writes the pages that are made from the code: every key of every command, and every message of a refusal.

``python docs/generate.py`` writes them; tests/test_docs.py fails if they are not what the code says.
"""

import ast
import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docstring_parser import parse as parse_docstring

from dist_imsr.baselines.config import BaselinesConfig
from dist_imsr.comparison.config import CompareConfig, Row, Source
from dist_imsr.data.generate import GenerateConfig
from dist_imsr.data.prepare import PrepareConfig
from dist_imsr.evaluation.index import ExportConfig
from dist_imsr.evaluation.recommend import RecommendConfig
from dist_imsr.evaluation.retest import EvaluateConfig
from dist_imsr.keys import rules_of
from dist_imsr.planning.config import PlanConfig
from dist_imsr.refresh.config import RefreshConfig
from dist_imsr.registry import extended
from dist_imsr.report.config import ReportConfig
from dist_imsr.training.config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
COMMANDS: dict[str, type] = {
    "prepare": PrepareConfig,
    "train": TrainConfig,
    "refresh": RefreshConfig,
    "recommend": RecommendConfig,
    "export": ExportConfig,
    "evaluate": EvaluateConfig,
    "baselines": BaselinesConfig,
    "compare": CompareConfig,
    "report": ReportConfig,
    "plan": PlanConfig,
    "generate": GenerateConfig,
}
_PARTS: dict[str, list[type]] = {"compare": [Source, Row]}  # of dictionaries, which a tree of keys does not show
_RESUME = {"free": "may change", "later_spans": "before span 1", "never": "never"}
_NAMES = {"MANIFEST": "dataset.json"}  # constants that messages show
_REFUSALS = {"ValueError", "Refusal", "Refused", "Stopped", "FloatingPointError", "NotStarted", "OSError"}


def keys_page() -> str:
    """Every key of every command: type, default, meaning, and for training what changing it means for resuming."""
    parts = [
        "# Keys of each command",
        "",
        "Each command also has `--help`, `--print_config` and `--config FILE`, which reads a YAML file of these keys;",
        "the command line wins over all files. `bench.py BENCHMARK --help` lists the keys of a benchmark. This page is",
        "made from the code by `python docs/generate.py`.",
        "",
    ]
    for command, tree in COMMANDS.items():
        trains = tree is TrainConfig
        parts += [f"## {command}.py", "", _summary(tree), ""]
        parts += _table(extended(tree), trains)
        for part in _PARTS.get(command, []):
            parts += [f"### {command}.py: {part.__name__}", "", _summary(part), "", *_table(part, False)]
        if trains:
            parts += [
                "On resuming: whether the key may change when a run resumes, only before span 1 (pre-training does not",
                "read it), or never.",
                "",
            ]
    return "\n".join(parts).rstrip() + "\n"


def _summary(tree: type) -> str:
    return _cell(parse_docstring(tree.__doc__ or "").short_description or "")


def _table(tree: type, trains: bool) -> list[str]:
    head = ["key", "default", "meaning", *(["on resuming"] if trains else [])]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for key, field, text in _keys(tree):
        default = _default(field)
        cells = [f"`{key.removesuffix('_')}`", default, text]
        if trains:
            cells.append(_RESUME[rules_of(tree, key).resume])
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    return [*lines, ""]


def _keys(tree: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], str]]:
    texts: dict[str, str] = {}
    for base in reversed(tree.__mro__):
        texts |= {one.arg_name: one.description or "" for one in parse_docstring(base.__doc__ or "").params}
    for field in dataclasses.fields(tree):
        if dataclasses.is_dataclass(field.type) and isinstance(field.type, type):
            yield from _keys(extended(field.type), f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field, texts.get(field.name, "")


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    elif field.default is not dataclasses.MISSING:
        value = field.default
    else:
        return "required"
    shown = str(value).lower() if isinstance(value, bool) else str(value).removeprefix(f"{ROOT}/")
    return f"`{shown}`" if shown else "`''`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


def messages_page() -> str:
    """The messages with which commands refuse or end, by the part of the program that says them."""
    introduction = (ROOT / "docs" / "troubleshooting.md").read_text().split(MARK)[0]
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path in sorted((ROOT / "dist_imsr").rglob("*.py")):
        parts = path.relative_to(ROOT / "dist_imsr").parts
        room = parts[0] if len(parts) > 1 else "commands"
        found[room] |= set(_messages(ast.parse(path.read_text())))
    lines = [f"{introduction}{MARK}", ""]
    for room in ROOMS:
        lines += [f"### {ROOMS[room]}", "", *(f"- {message}" for message in sorted(found[room])), ""]
    missing = found.keys() - ROOMS.keys()
    assert not {room for room in missing if found[room]}, f"rooms without a title: {missing}"
    return "\n".join(lines).rstrip() + "\n"


MARK = "<!-- made by docs/generate.py from here on -->"
ROOMS = {
    "data": "Logs and prepared data",
    "training": "Training and its folder",
    "strategies": "Strategies",
    "model": "Models",
    "distributed": "Ranks, table and engine",
    "evaluation": "Tests, recommendations, exports",
    "baselines": "Baselines",
    "comparison": "Comparisons",
    "refresh": "Refresh",
    "report": "Reports",
    "planning": "Plans",
    "benchmarks": "Benchmarks",
    "commands": "Any command",
}


def _messages(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name = getattr(node.exc.func, "id", getattr(node.exc.func, "attr", ""))
            if name in _REFUSALS and node.exc.args:
                yield from _shown(_text(node.exc.args[0]))
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require" and len(node.args) == 4:
            key, expected = _text(node.args[1]), _text(node.args[3])
            if key and expected:
                yield from _shown(f"{key}: ‹value›; expected {expected}")


def _shown(text: str) -> Iterator[str]:
    """A message as code, if it has more words than placeholders."""
    text = " ".join(text.split())
    if len(re.sub("‹[^›]*›", "", text).split()) >= 2:
        yield f"`{text.replace('`', '')}`"


def _text(node: ast.AST) -> str:
    """The text of a string with its expressions as placeholders; empty for what is no text."""
    if isinstance(node, ast.Constant):
        return str(node.value) if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(_piece(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return ""


def _piece(part: ast.AST) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    assert isinstance(part, ast.FormattedValue)
    inner = part.value
    while isinstance(inner, (ast.Attribute, ast.Subscript)) and not isinstance(inner, ast.Name):
        if isinstance(inner, ast.Attribute):
            return f"‹{inner.attr.strip('_').replace('_', ' ')}›"
        inner = inner.value
    if isinstance(inner, ast.Name):
        return _NAMES.get(inner.id) or f"‹{inner.id.strip('_').replace('_', ' ')}›"
    return "‹…›"


def pages() -> dict[Path, str]:
    """The pages that are made, by path."""
    folder = ROOT / "docs"
    return {folder / "reference" / "keys.md": keys_page(), folder / "troubleshooting.md": messages_page()}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)

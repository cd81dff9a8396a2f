"""How every command reads its configuration: one tree of dataclasses, a YAML file, dotted overrides.

A component's section is a dataclass that stands beside the component; a command's tree is a dataclass of such
sections. Types are checked by jsonargparse; values are checked in each section's ``__post_init__`` through
`dist_imsr.checks.require`.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from dist_imsr.checks import require
from dist_imsr.launcher import rank_info

Section = TypeVar("Section")


def parse(tree: type[Section], argv: Sequence[str] | None = None, *, description: str | None = None) -> Section:
    """Reads a command's configuration from ``--config FILE`` and dotted overrides, later ones winning.

    Args:
        tree: the command's dataclass; its and its sections' docstrings become the help.
        argv: the arguments without the program's name; those of the process by default.
        description: the help's first paragraph; the tree's docstring by default.

    Returns:
        An instance of ``tree``, every section instantiated and checked.

    Raises:
        SystemExit: with status 2 and the key's name on stderr for an unknown key, a wrong type or an impossible
            value; with status 0 after ``--help`` and ``--print_config``.
    """
    parser = _parser(tree, description)
    try:
        return _read(parser, tree, _without_local_rank(sys.argv[1:] if argv is None else argv))
    except (ArgumentError, ValueError) as error:
        line = f"{parser.prog}: {_one_line(error)} (--help lists the keys)\n"
        parser.exit(2, line if rank_info().rank == 0 else None)


def resolve(tree: type[Section], argv: Sequence[str]) -> Section:
    """Reads what `parse` would, for another command than the one at hand.

    Args:
        tree: that command's dataclass.
        argv: its arguments.

    Returns:
        An instance of ``tree``, every section instantiated and checked.

    Raises:
        ValueError: with the key's name, where `parse` would end the process.
    """
    try:
        return _read(_parser(tree), tree, argv)
    except ArgumentError as error:
        raise ValueError(_one_line(error)) from None


def _parser(tree: type, description: str | None = None) -> ArgumentParser:
    about = description or _first_paragraph(tree)
    parser = ArgumentParser(description=about, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="A YAML file of these keys; later arguments override it.")
    parser.add_class_arguments(tree, as_group=False)
    return parser


def _read(parser: ArgumentParser, tree: type[Section], argv: Sequence[str]) -> Section:
    arguments = parser.parse_args(_completed(argv, tree))
    for field in dataclasses.fields(tree):  # type: ignore[arg-type]
        if dataclasses.is_dataclass(field.type):
            read = arguments[field.name]
            require(isinstance(read, Namespace), field.name, read, "a section of keys")
    values = parser.instantiate(arguments)
    return tree(**{field.name: values[field.name] for field in dataclasses.fields(tree)})  # type: ignore[arg-type]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _first_paragraph(tree: type) -> str:
    return " ".join((tree.__doc__ or "").split("\n\n")[0].split())


def _without_local_rank(argv: Sequence[str]) -> list[str]:
    """Drops the ``--local_rank=N`` that DeepSpeed's launcher appends; the environment holds it as well."""
    return [argument for argument in argv if not argument.startswith("--local_rank=")]


def _completed(argv: Sequence[str], tree: type) -> list[str]:
    """Gives ``true`` to switches that stand alone: ``--overwrite`` is ``--overwrite true``."""

    def switches(section: type, prefix: str) -> set[str]:
        kinds = {f"{prefix}{field.name}": field.type for field in dataclasses.fields(section)}
        nested = (switches(kind, f"{key}.") for key, kind in kinds.items() if dataclasses.is_dataclass(kind))  # type: ignore[arg-type]
        return {f"--{key}" for key, kind in kinds.items() if kind is bool}.union(*nested)

    known, following = switches(tree, ""), [*argv[1:], "--"]
    return [
        f"{one}=true" if one in known and after.startswith("--") else one
        for one, after in zip(argv, following, strict=False)
    ]


def to_yaml(config: Any) -> str:
    """A fully resolved configuration as YAML that `parse` reads back.

    Args:
        config: an instance of a command's dataclass.

    Returns:
        The YAML text, keys in the order of the dataclass.
    """
    return yaml.safe_dump(plain(dataclasses.asdict(config)), sort_keys=False)


def plain(value: Any) -> Any:
    """What text formats can hold in place of a configuration's values.

    Args:
        value: of any kind that a configuration holds.

    Returns:
        The same of dicts, lists, strings and numbers.
    """
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value

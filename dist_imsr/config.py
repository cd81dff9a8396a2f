"""How every command reads its configuration: one tree of dataclasses, YAML files, dotted overrides.

A component's section is a dataclass next to the component; a command's tree is a dataclass of such sections. Types are
checked by jsonargparse; values are checked in each section's ``__post_init__`` through `dist_imsr.checks.require`.

A section whose component is chosen by name has a class attribute ``registry``; what is registered with a configuration
of its own has a section of its name in there (`dist_imsr.registry.extended`).
"""

import dataclasses
import importlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from dist_imsr.addresses import Address, refuse_addresses
from dist_imsr.arguments import Parser, add_inherited, completed, joined
from dist_imsr.checks import require
from dist_imsr.launcher import is_first_rank
from dist_imsr.registry import extended

Section = TypeVar("Section")


def parse(tree: type[Section], argv: Sequence[str] | None = None, *, description: str | None = None) -> Section:
    """Reads a command's configuration from ``--config FILE`` and dotted overrides.

    Later files win over earlier ones, and overrides over all files, wherever they are on the command line. Modules that
    ``--import NAME ...`` adds to those of the key ``imports`` are imported first.

    Args:
        tree: the command's dataclass; its and its sections' docstrings become the help.
        argv: the arguments without the program's name; those of the process by default.
        description: the help's first paragraph; the tree's docstring by default.

    Returns:
        An instance of ``tree``, every section instantiated and checked.

    Raises:
        SystemExit: with status 2 and the key's name on stderr for an unknown key, a wrong type or an impossible
            value; with status 1 if remote files cannot be reached; with status 0 after ``--help`` and
            ``--print_config``.
    """
    try:
        return _read(tree, _without_local_rank(sys.argv[1:] if argv is None else argv), description)
    except (ArgumentError, ValueError) as error:
        if is_first_rank():
            sys.stderr.write(f"{Path(sys.argv[0]).name}: {_one_line(error)} (--help lists the keys)\n")
        raise SystemExit(2) from None
    except ConnectionError as error:  # some keys name remote files that are read at once
        if is_first_rank():
            sys.stderr.write(f"{Path(sys.argv[0]).name}: {_one_line(error)}\n")
        raise SystemExit(1) from None


def resolve(tree: type[Section], argv: Sequence[str]) -> Section:
    """Reads the configuration of another command, as `parse` does.

    Args:
        tree: that command's dataclass.
        argv: its arguments.

    Returns:
        An instance of ``tree``, every section instantiated and checked.

    Raises:
        ValueError: with the key's name, where `parse` would end the process.
    """
    try:
        return _read(tree, argv)
    except ArgumentError as error:
        raise ValueError(_one_line(error)) from None


def section_of(kind: type[Section], values: Mapping[str, Any]) -> Section:
    """A section from the plain values of a run's config.yaml.

    Args:
        kind: the section's dataclass.
        values: by key; a missing one has its default.

    Raises:
        ValueError: naming the key, for an unknown one, a wrong type or an impossible value.
    """
    kind = extended(kind)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, as_group=False)
    try:
        return _instance(parser, kind, parser.parse_object(dict(values)))
    except ArgumentError as error:
        raise ValueError(_one_line(error)) from None


def import_modules(names: Sequence[str]) -> None:
    """Imports modules that register strategies or base models; the current directory is searched first.

    Args:
        names: of modules, with dots.

    Raises:
        ValueError: naming the first one that cannot be imported, or that raises.
    """
    if names and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for name in names:
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            raise ValueError(f"import: {name}: {type(error).__name__}: {_one_line(error)}") from error


def _read(tree: type[Section], argv: Sequence[str], description: str | None = None) -> Section:
    files, replacing, added, overrides = _sorted_arguments(argv)
    documents = [_document(Path(file)) for file in files if os.path.isfile(file)]
    records = any(field.name == "imports" for field in dataclasses.fields(tree))  # type: ignore[arg-type]
    of_files = [name for document in documents for name in _listed(document.get("imports"))] if records else []
    modules = list(dict.fromkeys((of_files if replacing is None else replacing) + added))
    import_modules(modules)
    kind = extended(tree)
    parser = _parser(kind, description)
    arguments = [*(f"--config={file}" for file in files), *completed(joined(overrides, kind), kind)]
    if records and (modules or replacing is not None):
        arguments.append(f"--imports={json.dumps(modules)}")
    return _instance(parser, kind, parser.parse_args(arguments))


def _sorted_arguments(argv: Sequence[str]) -> tuple[list[str], list[str] | None, list[str], list[str]]:
    """The files, the modules in the place of theirs, those to import besides, and the overrides of a command line."""
    files, replacing, added, overrides = list[str](), None, list[str](), list[str]()
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        if name not in ("--config", "--import", "--import+", "--imports", "--imports+"):
            overrides.append(argument)
            continue
        values = [value] if equals else []
        while not equals and rest and not rest[0].startswith("--") and not (name == "--config" and values):
            values.append(rest.pop(0))
        if name == "--config":
            if not values:
                raise ValueError("config: expected the path of a YAML file")
            files += values
            continue
        modules = list[str]()
        for text in values or [""]:
            names = _listed(_loaded(text))
            empty = name == "--imports" and _loaded(text) == []
            require(bool(names) or empty, "import", text, "the name of a module, or a list of them")
            modules += names
        if name == "--imports":
            replacing = modules
        else:
            added += modules
    return files, replacing, added, overrides


def _listed(value: Any) -> list[str]:
    """Names of modules, alone or in a list; anything else is left to the parser to refuse."""
    values = value if isinstance(value, list) else [value]
    return values if all(isinstance(one, str) and one for one in values) else []


def _loaded(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _document(path: Path) -> dict[str, Any]:
    """A YAML file's top level, or nothing where the parser will refuse it.

    Raises:
        ValueError: for a file without keys, such as an empty one, which the parser refuses without its name; for a key
            that is there twice, where YAML would silently take the last.
    """
    try:
        text = path.read_text()
        root = yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"config: {path} holds no keys")
    for key, first, second in _repeated(root):
        raise ValueError(f"config: {path}: {key} is there twice, in lines {first} and {second}")
    document = _loaded(text)
    return document if isinstance(document, dict) else {}


def _repeated(node: yaml.Node | None, prefix: str = "") -> Iterator[tuple[str, int, int]]:
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = f"{prefix}{key.value}", key.start_mark.line + 1
            if name in seen:
                yield name, seen[name], line
            seen[name] = line
            yield from _repeated(value, f"{name}.")
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _repeated(value, prefix)


def _parser(tree: type, description: str | None) -> ArgumentParser:
    about = description or _first_paragraph(tree)
    parser = Parser(description=about, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="A YAML file of these keys; overrides win over all files.")
    parser.add_class_arguments(tree, as_group=False, skip=add_inherited(parser, tree))
    registries = dict(_registries(tree))
    for action in parser._actions:
        if action.dest in registries:
            action.metavar = f"{{{','.join(registries[action.dest])}}}"
    return parser


def _registries(section: type) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if hasattr(section, "registry"):
        yield section.registry.key, section.registry
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(field.type):
            yield from _registries(field.type)  # type: ignore[arg-type]


def _instance(parser: ArgumentParser, tree: type[Section], arguments: Namespace) -> Section:
    for field in dataclasses.fields(tree):  # type: ignore[arg-type]
        if dataclasses.is_dataclass(field.type):
            read = arguments[field.name]
            require(isinstance(read, Namespace), field.name, read, "a section of keys")
    refuse_addresses(dict(arguments.items()))
    values = parser.instantiate(arguments)
    return tree(**{field.name: values[field.name] for field in dataclasses.fields(tree)})  # type: ignore[arg-type]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _first_paragraph(tree: type) -> str:
    return " ".join((tree.__doc__ or "").split("\n\n")[0].split())


def _without_local_rank(argv: Sequence[str]) -> list[str]:
    """Drops the ``--local_rank=N`` that DeepSpeed's launcher appends; the environment has it as well."""
    return [argument for argument in argv if not argument.startswith("--local_rank=")]


def to_yaml(config: Any) -> str:
    """A fully resolved configuration as YAML that `parse` reads back.

    Args:
        config: an instance of a command's dataclass.

    Returns:
        The YAML text, keys in the order of the dataclass.
    """
    return yaml.safe_dump(plain(dataclasses.asdict(config)), sort_keys=False)


def plain(value: Any) -> Any:
    """Dicts, lists, strings and numbers for a configuration's values, as text formats need them."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, Path | Address) else value

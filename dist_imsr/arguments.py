"""Arguments of a command line in the forms that people write, and keys in the help under headings."""

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser
from jsonargparse.typing import register_type

from dist_imsr.addresses import Address, Location

_FILES = (Path, Location)
register_type(Address, str, Address)


def joined(argv: Sequence[str], tree: type) -> list[str]:
    """Makes a list of the words after a key that takes one: ``--input a.csv b.csv`` is ``--input=["a.csv", "b.csv"]``.

    Lists of files are collected if their key is there several times.

    Args:
        argv: the arguments.
        tree: the command's dataclass.
    """
    kinds = {f"--{key}": kind for key, kind in _keys(tree)}
    fields = {f"--{key}": f"--{key}_" for key in _reserved(tree)}
    files: dict[str, list[str]] = {option: [] for option, kind in kinds.items() if _element_of(kind) in _FILES}
    found, rest = list[str](), list(argv)
    while rest:
        option, equals, word = rest.pop(0).partition("=")
        option = fields.get(option, option)
        argument = f"{option}{equals}{word}"
        words = [word] if equals else []
        while _element_of(kinds.get(option)) and not equals and rest and not rest[0].startswith("--"):
            words.append(rest.pop(0))
        if words and option in files:
            files[option] += words
        else:
            found.append(f"{option}={_list(words, kinds[option])}" if words and option in kinds else argument)
    return found + [f"{option}={_list(words, kinds[option])}" for option, words in files.items() if words]


def _list(words: Sequence[str], kind: Any) -> str:
    """The words as the parser reads a list; in one of texts, NULL and 007 stay texts, whatever they are in YAML."""
    element = _element_of(kind)
    texts = element in (str, *_FILES)
    if len(words) == 1:
        [word] = words
        if word.startswith("[") and word.endswith("]"):
            return json.dumps(_texts(word)) if texts else word
        alone = {element, *get_args(element)} & set(get_args(kind))
        if element is None or (get_origin(kind) is not list and alone):
            return word
    return json.dumps(words) if texts else f"[{', '.join(words)}]"


def _element_of(kind: Any) -> Any:
    """The type of a list's elements, if a key takes a list."""
    return next((get_args(one)[0] for one in (kind, *get_args(kind)) if get_origin(one) is list), None)


def _texts(text: str) -> Any:
    try:
        return yaml.load(text, yaml.BaseLoader)
    except yaml.YAMLError:
        return text


def completed(argv: Sequence[str], tree: type) -> list[str]:
    """Adds ``true`` to switches without a value: ``--overwrite`` is ``--overwrite true``.

    Args:
        argv: the arguments.
        tree: the command's dataclass.
    """
    known, following = {f"--{key}" for key, kind in _keys(tree) if kind is bool}, [*argv[1:], "--"]
    return [
        f"{one}=true" if one in known and after.startswith("--") else one
        for one, after in zip(argv, following, strict=False)
    ]


def _keys(section: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each key of a dataclass and its sections, as on the command line, with its type."""
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(field.type):
            yield from _keys(field.type, f"{prefix}{field.name}.")  # type: ignore[arg-type]
        else:
            yield f"{prefix}{field.name}", field.type


def _reserved(tree: type) -> list[str]:
    """The keys whose fields end in an underscore, as Python keeps their words for itself, without it."""
    return [key.removesuffix("_") for key, _ in _keys(tree) if key.endswith("_")]


def add_inherited(parser: ArgumentParser, tree: type) -> set[str]:
    """Adds the keys that a dataclass inherits from one with a true ``own_heading``, under the latter's docstring.

    Args:
        parser: the command's.
        tree: the command's dataclass.

    Returns:
        The names of the keys.
    """
    bases = [base for base in reversed(tree.__mro__[1:]) if vars(base).get("own_heading")]
    for base in bases:
        parser.add_class_arguments(base, as_group=True)
    if bases:
        parser.usage = "%(prog)s [--config FILE] [--KEY VALUE ...]"
    return {field.name for base in bases for field in dataclasses.fields(base)}


class Parser(ArgumentParser):
    """A parser whose help shows a key as it is written on the command line: ``--from`` for the field ``from_``."""

    def format_help(self, *arguments: Any) -> str:
        """The help."""
        return re.sub(r"--(\w+)_ (\w+)_(?!\w)", r"--\1 \2  ", super().format_help(*arguments))

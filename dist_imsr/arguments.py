"""Arguments of a command line in the forms that people write, and keys in the help under headings."""

import argparse
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser


def joined(argv: Sequence[str], tree: type) -> list[str]:
    """Makes a list of the words after a key that takes one: ``--input a.csv b.csv`` is ``--input=["a.csv", "b.csv"]``.

    Lists of files are collected if their key is there several times.

    Args:
        argv: the arguments.
        tree: the command's dataclass.
    """
    kinds = {f"--{key}": kind for key, kind in _keys(tree)}
    files: dict[str, list[str]] = {option: [] for option, kind in kinds.items() if _element_of(kind) is Path}
    found, rest = list[str](), list(argv)
    while rest:
        argument = rest.pop(0)
        option, equals, word = argument.partition("=")
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
    texts = element in (str, Path)
    if len(words) == 1:
        [word] = words
        if word.startswith("[") and word.endswith("]"):
            return json.dumps(_texts(word)) if texts else word
        if element is None or (get_origin(kind) is not list and element in get_args(kind)):
            return word
    return json.dumps(words) if texts else f"[{', '.join(words)}]"


def _element_of(kind: Any) -> type | None:
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
            yield f"{prefix}{_option(field.name)}", field.type


def _option(name: str) -> str:
    """A key on the command line; a word that Python keeps for itself ends in an underscore as a field."""
    return name.removesuffix("_")


def rename(parser: ArgumentParser, action: argparse.Action) -> None:
    """Gives a key that is a word of Python its name on the command line, without the underscore at its end.

    Args:
        parser: which has the action.
        action: of the key.
    """
    for option in action.option_strings:
        parser._option_string_actions[_option(option)] = parser._option_string_actions.pop(option)
    action.option_strings = [_option(option) for option in action.option_strings]
    action.metavar = _option(action.dest).upper()


def group_inherited(parser: ArgumentParser, tree: type) -> None:
    """Shows the keys that a dataclass inherits from one with a ``heading`` under it, after the command's own keys.

    Args:
        parser: with the keys of ``tree``.
        tree: the command's dataclass.
    """
    own, *sections = parser._action_groups[1:]
    headed = []
    for base in tree.__mro__[1:]:
        heading = vars(base).get("heading")
        if heading is not None:
            names = {field.name for field in dataclasses.fields(base)}
            group = parser.add_argument_group(heading)
            for action in [action for action in own._group_actions if action.dest in names]:
                own._group_actions.remove(action)
                group._group_actions.append(action)
            headed.append(group)
    if headed:
        parser._action_groups = [parser._action_groups[0], own, *reversed(headed), *sections]
        parser.usage = "%(prog)s [--config FILE] [--KEY VALUE ...]"

"""What changing a key of the configuration means, as metadata of the dataclass field that declares it.

``field(default=..., metadata=free())`` is one key; on the field of a section, the metadata holds for all keys of the
section whose own fields do not say otherwise. A key without any may never change when a run resumes, and may differ
between the rows of a comparison.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

Resume = Literal["free", "later_spans", "never"]
Compare = Literal["row", "shared", "tests", "grid"]


class Rules(NamedTuple):
    """What changing a key means.

    Args:
        resume: ``free`` to change whenever a run resumes; only ``later_spans`` read it, so that it may change before
            span 1; ``never``.
        compare: each ``row`` of a comparison may have its own value; ``shared`` by all rows on a data set, but for rows
            that compare settings; part of the ``tests``, which all rows have in common; set by the ``grid`` itself.
    """

    resume: Resume = "never"
    compare: Compare = "row"


def free(compare: Compare | None = None) -> dict[str, Any]:
    """Metadata of a key that may change whenever a run resumes.

    Args:
        compare: as in `Rules`; that of the section by default.
    """
    return _metadata("free", compare)


def later_spans(compare: Compare | None = None) -> dict[str, Any]:
    """Metadata of a key that pre-training does not read: a run may branch off another's pre-training with its own.

    Args:
        compare: as in `Rules`; that of the section by default.
    """
    return _metadata("later_spans", compare)


def never(compare: Compare | None = None) -> dict[str, Any]:
    """Metadata of a key that makes another run when it changes.

    Args:
        compare: as in `Rules`; that of the section by default.
    """
    return _metadata("never", compare)


def rules_of(tree: type, key: str) -> Rules:
    """What changing a key means.

    Args:
        tree: the dataclass of the whole configuration.
        key: with dots. One that the tree lacks follows the section that would hold it; the section of a registered name
            whose module was not imported is free, since nothing reads it.
    """
    rules, section, names = Rules(), tree, key.split(".")
    for depth, name in enumerate(names, 1):
        if not dataclasses.is_dataclass(section):  # a dictionary's own keys
            break
        field = _fields(section).get(name)
        if field is None:
            unread = hasattr(section, "registry") and depth < len(names)
            return rules._replace(resume="free") if unread else rules
        resume, compare = (field.metadata.get(kind, getattr(rules, kind)) for kind in ("resume", "compare"))
        rules, section = Rules(resume, compare), field.type  # type: ignore[assignment]
    return rules


def is_read(tree: type, key: str, values: Mapping[str, Any]) -> bool:
    """Whether a run reads a key: those in the section of a registered name count only where that name is chosen.

    Args:
        tree: the dataclass of the whole configuration.
        key: with dots.
        values: of the run, by key; where they lack the key that chooses, any name may be chosen.
    """
    section = tree
    for name in key.split(".")[:-1]:
        registry = getattr(section, "registry", None)
        if registry is not None and name in registry and values.get(registry.key, name) != name:
            return False
        field = _fields(section).get(name) if dataclasses.is_dataclass(section) else None
        if field is None:
            break
        section = field.type  # type: ignore[assignment]
    return True


def default_of(tree: type, key: str) -> Any:
    """The default value of a key.

    Args:
        tree: the dataclass of the whole configuration.
        key: with dots.

    Returns:
        The value; None for a key without a default or outside the tree.
    """
    section, value = tree, None
    for name in key.split("."):
        field = _fields(section).get(name) if dataclasses.is_dataclass(section) else None
        if field is None:
            return None
        value = _default(field) if value is None else getattr(value, name)
        section = field.type  # type: ignore[assignment]
    return value


def keys_of(tree: type, prefix: str = "") -> Iterator[str]:
    """All keys of a tree, with dots."""
    for name, field in _fields(tree).items():
        nested = dataclasses.is_dataclass(field.type)
        yield from keys_of(field.type, f"{prefix}{name}.") if nested else [f"{prefix}{name}"]  # type: ignore[arg-type]


def _metadata(resume: Resume, compare: Compare | None) -> dict[str, Any]:
    return {"resume": resume} | ({} if compare is None else {"compare": compare})


def _fields(section: type) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(section)}


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default

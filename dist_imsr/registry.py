"""Components that are chosen by name: strategies and base models, of the package and of a user's own modules."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")
Section = TypeVar("Section")


class Entry(NamedTuple, Generic[T]):
    """A registered component.

    Args:
        build: its class, or a function that makes one.
        config: the dataclass of its section; None where it has no keys of its own.
    """

    build: T
    config: type | None


class Registry(Mapping[str, Entry[T]]):
    """Components by name.

    Args:
        key: the key of the configuration that chooses among them, e.g. ``"strategy.name"``.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self._entries: dict[str, Entry[T]] = {}

    def register(self, name: str, config: type | None = None) -> Callable[[T], T]:
        """A decorator that registers a component, and a section of its own next to the key that chooses it.

        Args:
            name: as users write it; its section has the same name.
            config: the dataclass of the section, whose keys all have defaults.

        Returns:
            The decorator, which returns the component unchanged.

        Raises:
            ValueError: for a name that another component has, or that cannot be a key.
        """
        if not name.isidentifier():
            raise ValueError(f"{self.key}: {name!r} cannot be the name of a section; use letters, digits and _")

        def add(build: T) -> T:
            other = self._entries.get(name)
            if other is not None and _source(other.build) != _source(build):
                raise ValueError(
                    f"{self.key}: {name!r} is registered twice, by {_source(other.build)} and {_source(build)}"
                )
            self._entries[name] = Entry(build, config)
            return build

        return add

    def __getitem__(self, name: str) -> Entry[T]:
        """Looks up a component; an unknown name is a ValueError with the key and all known names."""
        if name not in self._entries:
            expected = ", ".join(self._entries)
            raise ValueError(f"{self.key}: {name!r} is impossible here; expected one of {expected}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def extended(tree: type[Section]) -> type[Section]:
    """A configuration with a section for each registered name that has one.

    Args:
        tree: a dataclass, whose sections may have an attribute ``registry``.

    Returns:
        A subclass whose sections have a field for each registered configuration that they lack, named as it is
        registered; ``tree`` itself where none is lacking. The same class for the same registered names.
    """
    changed = {}
    for field in dataclasses.fields(tree):  # type: ignore[arg-type]
        if dataclasses.is_dataclass(field.type):
            section = extended(field.type)  # type: ignore[arg-type]
            if section is not field.type:
                changed[field.name] = (section, field)
    registry = getattr(tree, "registry", {})
    known = {field.name for field in dataclasses.fields(tree)}  # type: ignore[arg-type]
    added = {name: entry.config for name, entry in registry.items() if entry.config and name not in known}
    if not changed and not added:
        return tree
    kind: Any = tree
    return _subclass(kind, tuple(changed.items()), tuple(added.items()))


@functools.cache
def _subclass(tree: type, changed: tuple[tuple[str, Any], ...], added: tuple[tuple[str, type], ...]) -> type:
    fields: list[tuple[str, type, Any]] = []
    for name, (section, field) in changed:
        make: Any = dataclasses.MISSING
        if field.default_factory is not dataclasses.MISSING:
            make = functools.partial(_as, section, field.default_factory)
        fields.append((name, section, dataclasses.field(default_factory=make, metadata=field.metadata)))
    fields += [(name, config, dataclasses.field(default_factory=config)) for name, config in added]
    own = {"__doc__": tree.__doc__, "__module__": tree.__module__, "__reduce__": _reduce, "authored": tree}
    frozen = tree.__dataclass_params__.frozen  # type: ignore[attr-defined]
    return dataclasses.make_dataclass(tree.__name__, fields, bases=(tree,), namespace=own, frozen=frozen)


def _as(section: type, make: Any) -> Any:
    """A section's default with the fields that registered names add."""
    default = make()
    return section(**{field.name: getattr(default, field.name) for field in dataclasses.fields(default)})


def _reduce(config: Any) -> tuple[Any, ...]:
    """Pickles a class that no module holds; its values come first, and import the modules that define them."""
    return _restored, (config.authored, config.__dict__)


def _restored(base: type, values: dict[str, Any]) -> Any:
    config: Any = object.__new__(extended(base))
    config.__dict__.update(values)
    return config


def _source(build: object) -> str:
    return f"{getattr(build, '__module__', '?')}.{getattr(build, '__qualname__', build)}"

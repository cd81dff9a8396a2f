"""What can be chosen by name: strategies and base models, those of the package and those of a user's own modules."""

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Entry(NamedTuple, Generic[T]):
    """What stands behind a name.

    Args:
        build: the class, or what else makes one.
        config: the dataclass of its section; None where it has no keys of its own.
    """

    build: T
    config: type | None


class Registry(Mapping[str, Entry[T]]):
    """Classes by the names that a configuration gives them.

    Args:
        key: the key that chooses among them, e.g. ``"strategy.name"``.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self._entries: dict[str, Entry[T]] = {}

    def register(self, name: str, config: type | None = None) -> Callable[[T], T]:
        """A decorator that gives a class a name, and a section of its own beside that of the key.

        Args:
            name: as users write it; its section has the same name.
            config: the dataclass of the section, whose keys all have defaults.

        Returns:
            The decorator, which returns the class as it is.

        Raises:
            ValueError: for a name that another class has, or that cannot be a key.
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
        try:
            return self._entries[name]
        except KeyError:
            expected = ", ".join(self._entries)
            raise ValueError(f"{self.key}: {name!r} is impossible here; expected one of {expected}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _source(build: object) -> str:
    return f"{getattr(build, '__module__', '?')}.{getattr(build, '__qualname__', build)}"

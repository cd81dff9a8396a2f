"""Places of files: local paths, and addresses such as ``s3://bucket/folder`` that pyarrow's filesystems read."""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

SCHEMES = ("s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")
_ADDRESS = re.compile(rf"(?:{'|'.join(SCHEMES)})://")
_MANGLED = re.compile(rf"(?:{'|'.join(SCHEMES)}):/")  # what a path makes of it
_SECRETS = ("client_secret", "account_key", "sas_token")  # keys of queries


class Address(str):
    """A remote file or folder: ``SCHEME://BUCKET/PATH?OPTIONS``, as in ``pyarrow.fs.FileSystem.from_uri``.

    Args:
        text: the address.

    Raises:
        ValueError: if it has no such scheme, names no bucket, or holds a secret, which logs and config.yaml would show.
    """

    def __new__(cls, text: str) -> Self:  # noqa: D102
        if not _ADDRESS.match(text):
            raise ValueError(f"{text} is no address: begin with one of {', '.join(SCHEMES)}, and ://")
        split = urlsplit(text)
        if split.password or any(key in parse_qs(split.query) for key in _SECRETS):
            place = f"{split.scheme}://{split.netloc.rpartition('@')[2]}{split.path}"
            raise ValueError(f"{place} came with a secret, which logs would show: pass it by environment variables")
        if not split.netloc and not split.path.strip("/"):
            raise ValueError(f"{text} names no bucket")
        return super().__new__(cls, text)

    def __truediv__(self, name: str) -> "Address":
        """A file or folder inside of the folder."""
        place, mark, options = self.partition("?")
        return Address(f"{place.rstrip('/')}/{name}{mark}{options}")

    @property
    def place(self) -> str:
        """The address without options."""
        return self.partition("?")[0].rstrip("/")

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the path inside of the bucket, without options."""
        return PurePosixPath(self.place.split("://", 1)[1]).parts[1:]

    @property
    def name(self) -> str:
        """The last name of the path, or the bucket's."""
        return self.place.rpartition("/")[2]


Location = Address | Path
"""Where a configuration key may name a remote place as well as a local one."""


def location(text: str) -> Location:
    """An address, if the text begins as one, else a local path."""
    return Address(text) if _ADDRESS.match(text) else Path(text)


def refuse_addresses(values: Mapping[str, Any]) -> None:
    """Refuses addresses where a configuration has local paths.

    Args:
        values: parsed, by key; an address that was read as a path has lost a slash.

    Raises:
        ValueError: naming the key.
    """
    for key, value in values.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, Path) and _MANGLED.match(str(one)):
                scheme, _, rest = str(one).partition(":/")
                try:
                    raise ValueError(f"{Address(f'{scheme}://{rest}')} is remote: this key takes a local path")
                except ValueError as error:  # that, or why it was read as a path where addresses are possible
                    raise ValueError(f"{key}: {error}") from None

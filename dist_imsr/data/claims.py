"""One change of a remote folder at a time: whoever changes it first writes a claim, and goes on if it is the only one.

Object stores have no locks, but all of the supported ones list what was written before: of two that write their claims
at the same time, at least one sees the other's.
"""

import contextlib
import json
import os
import socket
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dist_imsr.data.remote import RemoteFolder

FOLDER = ".changing"


@contextlib.contextmanager
def claimed(remote: RemoteFolder, key: str) -> Iterator[bool]:
    """Claims a remote folder for a change; claims of processes of this machine that have died are removed.

    Args:
        remote: the folder.
        key: of the configuration that names it, for errors.

    Yields:
        Whether such a claim was there, so that files may have been left over.

    Raises:
        ValueError: if another process has a claim.
    """
    own, left_over = f"{FOLDER}/{uuid.uuid4().hex}.json", False
    remote.write(own, json.dumps(_process(os.getpid())).encode())
    try:
        for name in remote.sizes(FOLDER).keys() - {own}:
            with contextlib.suppress(FileNotFoundError):  # that process ends at this moment
                other = json.loads(remote.read(name))
                if not _is_dead(other):
                    raise ValueError(
                        f"{key}: another process is changing {remote.address} ({other['host']}, process "
                        f"{other['pid']}, since {other['since']}); wait for it, or, if it has died, delete "
                        f"{remote.address / name}"
                    )
                remote.delete([name])
                left_over = True
        yield left_over
    finally:
        with contextlib.suppress(OSError, ValueError):  # this process will be dead, which the next one finds out
            remote.delete([own])


def _process(pid: int) -> dict[str, Any]:
    """What tells a process from all others, for as long as the machine runs."""
    return {
        "host": socket.gethostname(),
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "namespace": os.readlink("/proc/self/ns/pid"),
        "pid": pid,
        "started": _start_of(pid),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _is_dead(other: dict[str, Any]) -> bool:
    """Whether a process has ended, as far as this machine can tell."""
    here = _process(os.getpid())
    same_machine = all(other[name] == here[name] for name in ("boot", "namespace"))
    return same_machine and _start_of(other["pid"]) != other["started"]


def _start_of(pid: int) -> str | None:
    """When a process began, in the kernel's ticks; None if it has ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return status.rpartition(")")[2].split()[19]

"""What stands in a cache of engines, why nothing can use it any more, and removing it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pixel_perception.runtime.engine_file import header_or_none
from pixel_perception.runtime.engine_key import Machine, conversion_digest, graph_of

DAY = 86400.0


@dataclass(frozen=True)
class Entry:
    """One file of a cache, or what a killed build left there."""

    path: Path
    size: int
    """Bytes, those of what belongs to it included."""
    used: float
    """When it was built or last loaded, in seconds since 1970."""
    header: dict | None
    """See `engine_file.read_header`; None where there is no whole one."""
    busy: bool
    """Whether somebody builds it now."""

    @property
    def graph(self) -> str:
        """Name of its graph."""
        return graph_of(self.path)

    @property
    def days(self) -> float:
        """Since it was last used."""
        return (time.time() - self.used) / DAY

    def useless(self, machines: Sequence[Machine]) -> str:
        """Why nothing here can load it; empty where something can, or nobody knows. `machines`: the libraries that are here, with
        the device; "any" where a field is not known."""
        if self.busy:
            return ""
        if self.path.suffix == ".building":
            return "left by a build that was killed"
        if self.header is None:
            return "no whole engine of this package"
        key = self.header["key"]
        if key["conversion"] != conversion_digest():
            return "made from its bundle by another version of this package"
        library = key["runtime"].partition(" ")[0]
        reasons = [machine.cannot_load(key) for machine in machines if machine.runtime.partition(" ")[0] == library]
        return min(reasons, key=len, default="")


def entries(folder: Path) -> list[Entry]:
    """Everything in a cache, the latest used first."""
    found = []
    for path in [*folder.glob("*.engine"), *folder.glob("*.building")]:
        with contextlib.suppress(FileNotFoundError):  # another process may prune, too
            files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
            found.append(Entry(path, sum(file.stat().st_size for file in files), path.stat().st_mtime,
                               None if path.is_dir() else header_or_none(path), _busy(path)))  # fmt: skip
    return sorted(found, key=lambda entry: -entry.used)


def prune(folder: Path, machines: Sequence[Machine], unused: float, unused_anyway: float = float("inf")) -> list[tuple[Entry, str]]:
    """Remove what is useless here and was not used for `unused` days, and all that was not used for `unused_anyway` days; returns
    what was removed, and why.

    What is being built stays, and what cannot be removed. Killed in between, it leaves whole engines or none.
    """
    removed = []
    for entry in entries(folder):
        why = entry.useless(machines) if entry.days >= unused else ""
        if not why and entry.days >= unused_anyway:
            why = f"not used for {entry.days:.0f} days"
        if why and _remove(entry.path):
            removed.append((entry, why))
    return removed


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """The lock of an engine. Raises BlockingIOError where somebody builds it, and OSError."""
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(lock)


def _busy(path: Path) -> bool:
    if not path.with_suffix(".lock").exists():  # a list leaves nothing behind
        return False
    try:
        with _held(path):
            return False
    except OSError as error:
        return isinstance(error, BlockingIOError)


def _remove(path: Path) -> bool:
    """Whether it could be removed."""
    with contextlib.suppress(OSError), _held(path):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()  # the engine first: that it agreed says nothing without it
            path.with_suffix(".agreed.json").unlink(missing_ok=True)
        return True
    return False

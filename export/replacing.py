"""Writing a folder in one step: whoever is killed, runs out of space or fails leaves what was there before."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from pixel_perception.errors import PerceptionError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""From Linux' fcntl.h and fs.h."""


@contextmanager
def replacing(folder: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`; when the block ends well it takes that place, else it is removed.

    What a killed writer left beside `folder` is removed too. Raises PerceptionError INVALID_BUNDLE where nothing can be
    written.
    """
    folder = Path(folder).absolute()
    work = held = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work, held = _begin(folder)
        yield work
        work.chmod(0o755)
        for path in work.iterdir():
            path.chmod(0o644)
            _flush(path)
        if folder.exists():
            _exchange(work, folder)
        else:
            os.rename(work, folder)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk with an error of its own
        message = f"{folder}: cannot be written ({error}); expected a writable folder with enough space."
        raise PerceptionError("INVALID_BUNDLE", message) from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
        if held is not None:
            os.close(held)


def _begin(folder: Path) -> tuple[Path, int]:
    """A new folder beside `folder` and the lock that says somebody is writing it, which ends with its process."""
    parent = os.open(folder.parent, os.O_RDONLY)
    try:
        fcntl.flock(parent, fcntl.LOCK_EX)
        for leftover in folder.parent.glob(f".{folder.name}.partial-*"):
            if (held := _lock(leftover)) is not None:
                shutil.rmtree(leftover, ignore_errors=True)
                os.close(held)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
        return work, _lock(work)
    finally:
        os.close(parent)


def _lock(folder: Path) -> int | None:
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        return None
    return held


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders in one step, so that at no moment there is none."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename and rename(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE) == 0:
        return
    # A file system (or C library) without exchange: between these two steps a kill leaves the old folder beside its place.
    aside = new.with_name(new.name.replace(".partial-", ".old-"))
    os.rename(old, aside)
    os.rename(new, old)
    os.rename(aside, new)

"""Files and folders written in one step: whoever is killed, runs out of space or fails leaves what was there before. No torch."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""From Linux' fcntl.h and fs.h."""


class WritingError(ValueError):
    """A file or folder that cannot be written, which is as it was before: one sentence. `reason` says why without naming it."""

    def __init__(self, path: Path, error: Exception):
        self.reason = str(error)
        if isinstance(error, OSError) and error.strerror:
            self.reason = error.strerror + (f": {error.filename}" if error.filename else "")
        what = "folder" if path.is_dir() else "place"
        super().__init__(f"{path}: cannot be written ({self.reason}); expected a writable {what} with enough space")


@contextmanager
def replacing(folder: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`; when the block ends well it takes that place, else it is removed.

    What a killed writer left beside `folder` is removed too. Raises WritingError where nothing can be written.
    """
    folder = Path(folder).resolve()  # a link keeps pointing where it did
    work = held = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work, held = _begin(folder)
        yield work
        work.chmod(0o755)
        for path in work.rglob("*"):
            if path.is_file():
                path.chmod(0o644)
                _flush(path)
        if folder.exists():
            _exchange(work, folder)
        else:
            os.rename(work, folder)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk with an error of its own
        raise WritingError(folder, error) from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
        if held is not None:
            os.close(held)


@contextmanager
def replacing_file(path: str | Path) -> Iterator[Path]:
    """Yield the name of a file beside `path`; when the block that writes it ends well it takes that place, else it is removed.

    One writer at a time. Raises WritingError where nothing can be written.
    """
    path = Path(path).resolve()
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _flush(partial)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise WritingError(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file in one step. Raises WritingError."""
    with replacing_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _begin(folder: Path) -> tuple[Path, int | None]:
    """A new folder beside `folder` and the lock that says somebody is writing it, which ends with its process."""
    parent = os.open(folder.parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: nobody may write at the same time
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
    """A lock on a folder; None where another process holds it, or the file system has no locks."""
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        return None
    return held


def _flush(path: Path) -> None:
    # Without it a power cut could leave the new name on a file whose content never reached the disk.
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

"""An engine in a file, behind a header that says what it is and how it is to be found whole."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from pixel_perception.errors import PerceptionError
from pixel_perception.runtime.engine_key import EngineKey

MAGIC = b"PIXELENG"


def write_engine(path: Path, key: Mapping[str, str], engine: memoryview | bytes, accepted_drift: str = "") -> None:
    """Write an engine behind a header that says what it is, and why it may differ from its bundle. Raises OSError."""
    header = json.dumps({"key": dict(key), "size": len(engine), "sha256": hashlib.sha256(engine).hexdigest(), "built": int(time.time()),
                         "accepted_drift": accepted_drift}).encode()  # fmt: skip
    with open(path, "wb") as file:
        file.write(MAGIC + struct.pack("<I", len(header)) + header)
        file.write(engine)
        file.flush()
        os.fsync(file.fileno())


def check_engine(path: Path, key: EngineKey | None = None) -> bytes:
    """The engine in a file. Raises PerceptionError INVALID_BUNDLE naming what was expected and found where it is no engine of
    ours, of another key (where one is given), truncated or damaged."""
    header, begin = read_header(path)
    if key is not None and (wrong := key.differences(header["key"])):
        raise bad_engine(f"{path}: expected an engine made for this machine and graph, found one that differs in {', '.join(wrong)}.")
    with open(path, "rb") as file:
        file.seek(begin)
        engine = file.read()
    if len(engine) != header["size"]:
        raise bad_engine(f"{path}: expected an engine of {header['size']} bytes, found {len(engine)}; it is truncated.")
    found = hashlib.sha256(engine).hexdigest()
    if found != header["sha256"]:
        raise bad_engine(f"{path}: expected an engine with SHA-256 {header['sha256']}, found {found}; it is damaged.")
    return engine


def read_header(path: Path) -> tuple[dict, int]:
    """An engine file's header (key, size, sha256, built: seconds since 1970, accepted_drift), and where the engine begins. Raises
    OSError, and PerceptionError INVALID_BUNDLE where there is no whole one."""
    with open(path, "rb") as file:
        start = file.read(len(MAGIC) + 4)
        if len(start) < len(MAGIC) + 4 or not start.startswith(MAGIC):
            raise bad_engine(f"{path}: expected an engine of this package, found {'an empty file' if not start else 'another file'}.")
        size = struct.unpack("<I", start[len(MAGIC) :])[0]
        try:
            header = json.loads(file.read(size))
            header["key"], header["size"], header["sha256"], header["built"], header["accepted_drift"]
        except (ValueError, KeyError, TypeError):
            raise bad_engine(f"{path}: expected an engine's header of {size} bytes, found a damaged one.") from None
    return header, len(start) + size


def header_or_none(path: Path) -> dict | None:
    """An engine file's header, where there is a whole one."""
    try:
        return read_header(path)[0]
    except (OSError, PerceptionError):
        return None


def bad_engine(message: str) -> PerceptionError:
    """PerceptionError INVALID_BUNDLE."""
    return PerceptionError("INVALID_BUNDLE", message)

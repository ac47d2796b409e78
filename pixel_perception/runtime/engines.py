"""TensorRT engines on this machine: where they are kept, and how they are built.

An engine is made of one graph of a bundle and kept in a cache under the digest of everything that it depends on; what ONNX
Runtime's CUDA provider takes in its place is kept likewise. It is built in a process of its own, under a lock that a dying
process gives back, and appears in the cache by a rename: the cache holds whole engines or none. Nothing here needs a GPU or
TensorRT itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from pixel_perception.errors import PerceptionError
from pixel_perception.runtime.engine_file import bad_engine, check_engine, header_or_none
from pixel_perception.runtime.engine_key import EngineKey, Machine
from pixel_perception.runtime.engine_upkeep import prune

LOG = logging.getLogger(__name__)
FORGOTTEN = 30
"""Days without use after which what this machine can no longer load is removed, when something is built in its place."""
Progress = Callable[[str, float], None]
"""Called with a graph's name and how much of its build is done, 0 to 1."""


class EngineCache:
    """A folder of engines. Any number of processes may use it at once."""

    def __init__(self, folder: str | Path | None = None) -> None:
        """None: `pixel_perception/engines` in the user's cache folder."""
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.folder = Path(folder) if folder is not None else Path(root) / "pixel_perception" / "engines"

    def path(self, key: EngineKey) -> Path:
        """Where the engine of a key is, or would be."""
        return self.folder / key.file

    def load(self, key: EngineKey, graph: Path, progress: Progress | None = None) -> bytes:
        """`get`, and what is in it, to be used."""
        path = self.get(key, graph, progress)
        with contextlib.suppress(OSError):  # a cache may be read-only
            os.utime(path)
        return check_engine(path)

    def get(self, key: EngineKey, graph: Path, progress: Progress | None = None, accepted_drift: str = "") -> Path:
        """The engine of a key; built now, from the bundle's graph, where there is none that can be used. `accepted_drift`: why it may
        differ from the bundle, stored with it.

        Raises PerceptionError INVALID_BUNDLE where it cannot be built or written; the cache is then as it was.
        """
        path = self.path(key)
        if self._usable(key):
            return path
        with self._lock(path):
            if not self._usable(key):  # another process may have built it meanwhile
                LOG.warning("%s", self.why(key))
                self._build(key, graph, progress, accepted_drift)
        for entry, why in prune(self.folder, [Machine.of(key)], FORGOTTEN):
            LOG.info("%s was removed (%.0f MB): %s", entry.path, entry.size / 1e6, why)
        return path

    def has(self, key: EngineKey) -> bool:
        """Whether a file for this key is there; `get` may still refuse it."""
        return self.path(key).is_file()

    def last(self, keys: Iterable[EngineKey]) -> EngineKey | None:
        """The key whose engine was built last, of those that are there."""
        built = {key: header["built"] for key in keys if self.has(key) and (header := header_or_none(self.path(key)))}
        return max(built, key=built.get, default=None)

    def accepted_drift(self, key: EngineKey) -> str:
        """Why the engine of a key may differ from its bundle; empty where it may not, or there is none."""
        header = header_or_none(self.path(key)) if self.has(key) else None
        return header["accepted_drift"] if header else ""

    def agree(self, key: EngineKey, figures: Mapping[str, object]) -> None:
        """Store how well the engine of a key, or what else its backend made of its graph, agrees with another backend; without it
        that is compared again."""
        path = self.path(key).with_suffix(".agreed.json")
        partial = path.with_suffix(f".{os.getpid()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(figures) + "\n")
            os.replace(partial, path)
        except OSError as error:
            LOG.warning("%s", _cannot_write(path, error).message)

    def has_agreed(self, key: EngineKey) -> bool:
        """Whether `agree` was called for the engine of a key."""
        return self.path(key).with_suffix(".agreed.json").is_file()

    def why(self, key: EngineKey) -> str:
        """One sentence: why there is no engine for a key, named by the fields in which the nearest one differs."""
        others = [header["key"] for path in self.folder.glob(f"{key.graph}-*.engine") if (header := header_or_none(path))]
        differing = min((key.differences(other) for other in others), key=len, default=None)
        reason = "none was built before"
        if differing is not None:
            reason = f"the nearest differs in {', '.join(differing)}" if differing else "the one that was there was refused"
        where = "this machine" if key.device != "any" else f"compute capability {key.compute_capability}"
        return f"{self.folder}: no engine of {key.graph} for {where}: {reason}. It is built now."

    def _usable(self, key: EngineKey) -> bool:
        path = self.path(key)
        if not path.is_file():
            return False
        try:
            check_engine(path, key)
        except PerceptionError as error:
            LOG.warning("%s", error.message)
            return False
        return True

    @contextlib.contextmanager
    def _lock(self, path: Path) -> Iterator[None]:
        """One builder per engine; the system gives the lock back when its process ends, however it ends."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise _cannot_write(path, error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)

    def _build(self, key: EngineKey, graph: Path, progress: Progress | None, accepted_drift: str) -> None:
        path = self.path(key)
        work = path.with_suffix(".building")
        shutil.rmtree(work, ignore_errors=True)  # of a build that was killed: the lock is ours
        job = {"graph": str(graph), "key": dataclasses.asdict(key), "out": str(work / "engine"), "accepted_drift": accepted_drift,
               "timing": str(self.folder / f"timing-{_timing_name(key)}.cache")}  # fmt: skip
        try:
            work.mkdir()
            path.with_suffix(".agreed.json").unlink(missing_ok=True)
            _run_builder(job, key.graph, progress or (lambda name, done: None))
            os.replace(work / "engine", path)
        except OSError as error:
            raise _cannot_write(path, error) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _run_builder(job: dict, name: str, progress: Progress) -> None:
    """Run pixel_perception.export.build_engine on a job. It ends when our end of its input is closed, so that no build
    outlives the process that waits for it."""
    command = [sys.executable, "-m", "pixel_perception.export.build_engine"]
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words, text=True)
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(job) + "\n")
                process.stdin.flush()
            message: dict = {}
            for line in process.stdout:
                message = json.loads(line)
                if "progress" in message:
                    LOG.info("building %s: %d %%", name, 100 * message["progress"])
                    progress(name, message["progress"])
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.close()
            status = process.wait()
        if "error" in message:
            raise PerceptionError("INVALID_BUNDLE", message["error"])
        if status:
            words.seek(0)
            last = (words.read().decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
            ending = f"was killed by signal {-status}" if status < 0 else f"ended with code {status}"
            raise PerceptionError("INVALID_BUNDLE", f"{job['graph']}: expected an engine to be built, but the build {ending} ({last}).")
    progress(name, 1.0)


def _timing_name(key: EngineKey) -> str:
    """Timings are shared by all graphs on one device with one runtime."""
    return hashlib.sha256(f"{key.runtime}|{key.device}|{key.compute_capability}|{key.driver}".encode()).hexdigest()[:16]


def _cannot_write(path: Path, error: OSError) -> PerceptionError:
    return bad_engine(f"{path}: cannot be written ({error.strerror or error}); expected a writable engine cache with enough space.")

"""What a TensorRT engine depends on: a graph, how it is converted and for which shapes, and the machine."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PRECISIONS = ("auto", "fp16", "int8", "int4")
"""How language weights are stored; "auto": int4 if they are in the bundle, else fp16. Vision is always fp16."""
LANGUAGE = "language_model"
"""The graph whose weights have a choice."""
POSITIONS = 4096
"""Most positions that a language engine holds, those of all rows of a batch together."""
STEP = 512
"""Most positions that it reads at once; more are read in several steps."""
ROWS = 64
"""Most rows of a batch."""
AXES = {"batch": (1, 1, 8), "regions": (1, 13, 64), "targets": (1, 4, 64), "words": (1, 32, 1024)}
"""Smallest, usual and largest size of every dynamic axis of the vision graphs."""
VISION_PROFILES = (AXES,)
LANGUAGE_PROFILES = (
    {"step": (1, 64, STEP), "places": (256, 256, POSITIONS), "total": (257, 320, POSITIONS + STEP), "asked": (1, 1, ROWS)},
    {"step": (1, 1, ROWS), "places": (256, 256, POSITIONS), "total": (257, 257, POSITIONS + ROWS), "asked": (1, 1, ROWS)},
)
"""Reading prompts; and one token, a codebook run, or the next tokens of several rows."""
_CONVERSION = ("gpu_graph", "cuda_graph", "eight_bit", "half", "fused_language", "plain_graph", "language_graph")
"""Modules of pixel_perception.export whose code decides what a graph of a bundle becomes on a GPU."""


@dataclass(frozen=True)
class EngineKey:
    """Everything that an engine depends on."""

    graph: str
    onnx: str
    """SHA-256 of the bundle's graph with its external data."""
    conversion: str
    """SHA-256 of the code that makes a GPU graph of it."""
    precision: str
    profiles: str
    flags: str
    runtime: str
    """Which TensorRT, and its version."""
    cuda: str
    driver: str
    device: str
    compute_capability: str

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"{self.graph}-{self.digest}.engine"

    @property
    def digest(self) -> str:
        """The key's name in the cache: 32 hexadecimal digits."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()[:32]

    def differences(self, other: Mapping[str, str]) -> list[str]:
        """Where another key (as a mapping) differs, in words."""
        mine = dataclasses.asdict(self)
        return [f"{name} (expected {_short(value)}, found {_short(other.get(name))})" for name, value in mine.items()
                if other.get(name) != value]  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """The part of a key that is the same for every graph."""

    runtime: str
    cuda: str
    driver: str
    device: str
    compute_capability: str
    flags: str = "strongly typed"

    @staticmethod
    def ahead_of_time(runtime: str, compute_capability: str) -> Machine:
        """Any device of a compute capability ("8.6"), with any driver that the runtime works with."""
        return Machine(runtime, "any", "any", "any", compute_capability, "strongly typed, ahead of time")

    @staticmethod
    def of(key: EngineKey) -> Machine:
        """The part of a key."""
        return Machine(**{field.name: getattr(key, field.name) for field in dataclasses.fields(Machine)})

    def cannot_load(self, key: Mapping[str, str]) -> str:
        """Why an engine of this key (as a mapping) cannot be loaded here: the fields that differ, in words; empty where it can.

        One that was built ahead of time may be for another device on purpose, and where there is no device (all "any") nobody knows:
        then the library alone counts.
        """
        known = "any" not in (self.device, key.get("device"))
        fields = ("runtime", "cuda", "driver", "device", "compute_capability") if known else ("runtime",)
        wrong = [f"{name} (expected {_short(getattr(self, name))}, found {_short(key.get(name))})" for name in fields
                 if getattr(self, name) != key.get(name)]  # fmt: skip
        return f"made for another {', '.join(wrong)}" if wrong else ""


def key_of(path: Path, precision: str, machine: Machine) -> EngineKey:
    """The key of a graph's engine; `path` is its ONNX file, `precision` fp16, or how language weights are stored."""
    profiles = json.dumps(profiles_of(path.stem), sort_keys=True)
    return EngineKey(path.stem, onnx_digest(path), conversion_digest(), precision, profiles, **dataclasses.asdict(machine))


def profiles_of(graph: str) -> tuple[dict[str, tuple[int, int, int]], ...]:
    """Optimisation profiles of a graph: axis name -> smallest, usual, largest size."""
    return LANGUAGE_PROFILES if graph == LANGUAGE else VISION_PROFILES


def graph_of(path: Path) -> str:
    """Name of the graph of a file that is called as `EngineKey.file` says."""
    return path.stem.rpartition("-")[0]


def onnx_digest(path: Path) -> str:
    """SHA-256 over an ONNX file and its external data: every file beside it whose name begins with its own."""
    files = sorted(path.parent.glob(path.name + "*"))
    return _digest(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@functools.lru_cache(64)
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Of files that have these sizes and were changed then: gigabytes, whose key is asked for several times."""
    digest = hashlib.sha256()
    for file, _, _ in files:
        digest.update(file.name.encode() + b"\0")
        with open(file, "rb") as source:
            while block := source.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


@functools.cache
def conversion_digest() -> str:
    """SHA-256 of the conversion's code, so that an engine of an older version is never taken for one of this."""
    digest = hashlib.sha256()
    for name in _CONVERSION:
        spec = importlib.util.find_spec(f"pixel_perception.export.{name}")
        digest.update(Path(spec.origin).read_bytes())
    return digest.hexdigest()


def _short(value: str | None) -> str:
    text = repr(value)
    return text if len(text) <= 50 else f"{text[:24]}...{text[-10:]}"

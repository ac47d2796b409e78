"""What stands in a cache of engines, for people."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import onnxruntime

from pixel_perception.bundle import Bundle
from pixel_perception.errors import PerceptionError
from pixel_perception.runtime.cuda import cuda
from pixel_perception.runtime.engine_key import Machine, onnx_digest
from pixel_perception.runtime.engine_upkeep import Entry
from pixel_perception.runtime.tensorrt_library import find_tensorrt


def here() -> list[Machine]:
    """What loads engines on this machine: every library that is installed, with the device where there is one."""
    versions = [f"onnxruntime {onnxruntime.__version__}"]
    with contextlib.suppress(PerceptionError):
        versions.append(find_tensorrt()[1])
    try:
        device = cuda()
        rest = device.version, device.driver, device.device, device.compute_capability
    except PerceptionError:
        rest = ("any",) * 4
    return [Machine(version, *rest) for version in versions]


def digests(bundle: str | None) -> set[str]:
    """`onnx_digest` of every graph of a bundle; nothing where there is none."""
    try:
        found = Bundle.listed(bundle)
    except PerceptionError:
        return set()
    return {onnx_digest(found.graph(name)) for name in found.manifest.graphs}


def described(entry: Entry, why: str, ours: set[str]) -> dict:
    """An entry of a cache for --json; `why` nothing here can load it, or it was removed; `ours`: `digests` of the bundle."""
    header = entry.header or {}
    return {"graph": entry.graph, "file": str(entry.path), "bytes": entry.size, "days_unused": round(entry.days, 1), "why": why,
            "busy": entry.busy, "of_bundle": header.get("key", {}).get("onnx") in ours, "accepted_drift": header.get("accepted_drift", ""),
            "key": header.get("key", {})}  # fmt: skip


def table(found: Sequence[dict], verb: str) -> str:
    """What `described` gives, in lines; `verb` says what those are that nothing can load."""
    lines = []
    for entry in found:
        key = entry["key"]
        what = Path(entry["file"]).name
        if key:
            what = f"{key['precision']:<5} {key['runtime']:<26} {key['device']} {key['compute_capability']}"
        drift = f", accepted drift: {entry['accepted_drift']}" if entry["accepted_drift"] else ""
        usable = "being built" if entry["busy"] else "usable" if entry["of_bundle"] else "usable, of another bundle"
        verdict = f"{verb}: {entry['why']}" if entry["why"] else usable
        lines.append(f"{entry['graph']:<26}{entry['bytes'] / 1e6:>8.1f} MB  {what}; used {entry['days_unused']:.0f} days ago; "
                     f"{verdict}{drift}")  # fmt: skip
    total, useless = (sum(e["bytes"] for e in found if all_ or e["why"]) for all_ in (True, False))
    return "\n".join([*lines, f"{len(found)} files of {total / 1e6:.1f} MB, {verb}: {useless / 1e6:.1f} MB"])

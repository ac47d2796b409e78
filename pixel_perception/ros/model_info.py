"""What the service get_model_info answers."""

from __future__ import annotations

from copy import copy
from pathlib import Path

from pixel_perception.bundle import MANIFEST, Manifest
from pixel_perception.perception import Perception
from pixel_perception.ros.diagnostics import resident_bytes
from pixel_perception.srv import GetModelInfo
from pixel_perception.types import MAX_TEXT


def describe(perception: Perception) -> GetModelInfo.Response:
    """Everything about a loaded model that does not change."""
    info = perception.info
    text = (Path(info.folder) / MANIFEST).read_text(encoding="utf-8")
    manifest = Manifest.from_json(text)
    return GetModelInfo.Response(
        loaded=True,
        name=info.name,
        version=info.version,
        licence=info.licence,
        digest=info.digest,
        bundle=info.folder,
        backend=info.backend,
        tasks=[task.lower() for task in info.tasks],
        precision=[f"{name}: {graph.precision}" for name, graph in manifest.graphs.items()],
        image_width=manifest.image.width,
        image_height=manifest.image.height,
        max_text_length=MAX_TEXT,
        bundle_bytes=info.memory,
        manifest=text,
    )


def now(info: GetModelInfo.Response, perception: Perception | None) -> GetModelInfo.Response:
    """The same with what changes: the memory of this process, and the backend while engines are built."""
    info = copy(info)
    if perception is not None:
        info.backend = perception.info.backend
    info.resident_bytes = resident_bytes()
    return info

"""What the service get_model_info answers."""

from __future__ import annotations

import dataclasses
import json
from copy import copy

from pixel_perception.perception import Perception
from pixel_perception.ros.diagnostics import resident_bytes
from pixel_perception.srv import GetModelInfo
from pixel_perception.types import MAX_TEXT


def describe(perception: Perception, backend: str) -> GetModelInfo.Response:
    """Everything about a loaded model that does not change."""
    bundle = perception.bundle
    manifest = bundle.manifest
    files = [graph.file for graph in manifest.graphs.values()] + list(manifest.files) + ["manifest.json"]
    return GetModelInfo.Response(
        loaded=True,
        name=manifest.name,
        version=manifest.version,
        licence=manifest.licence,
        digest=bundle.digest,
        bundle=str(bundle.folder),
        backend=backend,
        tasks=list(manifest.tasks),
        precision=[f"{name}: {graph.precision}" for name, graph in manifest.graphs.items()],
        image_width=manifest.image.width,
        image_height=manifest.image.height,
        max_text_length=MAX_TEXT,
        bundle_bytes=sum((bundle.folder / file).stat().st_size for file in files),
        manifest=json.dumps(dataclasses.asdict(manifest)),
    )


def now(info: GetModelInfo.Response) -> GetModelInfo.Response:
    """The same with what changes: the memory of this process."""
    info = copy(info)
    info.resident_bytes = resident_bytes()
    return info

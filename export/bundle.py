"""Bundles: the parts that are trained here, and the whole model assembled from them and the published base weights.

`write_parts` (torch) makes the small form that is committed; `assemble` (numpy and onnx) makes the form that is opened.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import helper
from safetensors.numpy import save_file

from pixel_perception.bundle import (
    Bundle,
    GraphSpec,
    Manifest,
    TensorSpec,
    file_digest,
    write_manifest,
)
from pixel_perception.errors import PerceptionError


def graph_spec(path: Path, model: onnx.ModelProto, precision: str) -> GraphSpec:
    """Manifest entry of a graph that was saved at `path`."""

    def spec(value: onnx.ValueInfoProto) -> TensorSpec:
        tensor = value.type.tensor_type
        dims = tuple(d.dim_param if d.HasField("dim_param") else d.dim_value for d in tensor.shape.dim)
        return TensorSpec(value.name, np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name, dims)

    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    return GraphSpec(
        path.name,
        file_digest(path),
        tuple(map(spec, model.graph.input)),
        tuple(map(spec, model.graph.output)),
        precision,
        opset,
    )


@contextmanager
def replacing(folder: str | Path):
    """Yield an empty folder beside `folder`; when the block ends well it takes the place of `folder`, else it is removed."""
    folder = Path(folder).absolute()
    work = old = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
        work.chmod(0o755)
        yield work
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old-", dir=folder.parent))
            os.rename(folder, old / folder.name)
        os.rename(work, folder)
    except OSError as error:
        raise PerceptionError(
            "INVALID_BUNDLE",
            f"{folder}: cannot be written: {error}; expected a writable folder with 400 MB free.",
        ) from error
    finally:
        for leftover in (work, old):
            if leftover is not None:
                shutil.rmtree(leftover, ignore_errors=True)


def write_bundle(
    folder: str | Path,
    graphs: dict[str, tuple[onnx.ModelProto, str]],
    embeddings: np.ndarray,
    codebook_output: np.ndarray,
    tokenizer_json: str,
    **manifest,
) -> Bundle:
    """Write a bundle in one step and open it.

    graphs: name -> (model, precision); embeddings (vocabulary + added, hidden), stored as fp16; codebook_output
    (2, hidden) fp32; **manifest: the remaining fields of `pixel_perception.bundle.Manifest`. Raises PerceptionError
    INVALID_BUNDLE; then nothing is left behind and what was at `folder` stays.
    """
    with replacing(folder) as work:
        specs = {}
        for name, (model, precision) in graphs.items():
            path = work / f"{name}.onnx"
            onnx.save(model, path)
            specs[name] = graph_spec(path, model, precision)
        tensors = {
            "embeddings": embeddings.astype(np.float16),
            "codebook_output": codebook_output.astype(np.float32),
        }
        save_file(tensors, work / "language.safetensors")
        (work / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
        files = {name: file_digest(work / name) for name in ("language.safetensors", "tokenizer.json")}
        write_manifest(work, Manifest(graphs=specs, files=files, **manifest))
        for path in work.iterdir():
            path.chmod(0o644)
        Bundle.open(work)
    return Bundle.open(folder)

"""Bundles: the parts that are trained here, and the whole model assembled from them and the published base weights.

`write_parts` (torch) makes the small form that is committed: `trained.safetensors` (fp16), the vision graphs without
their weights, and a manifest. `assemble` (numpy and onnx) makes the form that is opened.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pixel_perception.bundle import (
    MANIFEST,
    PARITY,
    Bundle,
    Codebook,
    GraphSpec,
    ImageSpec,
    Manifest,
    TensorSpec,
    Thresholds,
    Tokens,
    file_digest,
    verify_file,
    write_manifest,
)
from pixel_perception.errors import PerceptionError
from pixel_perception.export import base_weights, eight_bit, language_graph, skeleton, tokenizer
from pixel_perception.writing import replacing

TRAINED = "trained.safetensors"
VISION = (
    "image_encoder",
    "proposals",
    "prompt_feature_extractor",
    "token_fusion",
    "pixel_decoder",
    "location_head",
)
EIGHT_BIT = ("prompt_feature_extractor", "token_fusion")
"""Those that 8-bit products make faster and leave as they were (docs/benchmarks/vision_quantisation.md)."""
ADDED, OUTPUT = "embeddings.added", "codebook_output"
ROOM = 400 << 20
"""Bytes that assembling needs: a bundle, and some to spare."""
TASKS = ("SEGMENT", "REFER", "CAPTION_REGION", "CAPTION_DENSE", "NARRATE", "ANSWER")


def graph_spec(path: Path, model: onnx.ModelProto, precision: str) -> GraphSpec:
    """Manifest entry of a graph that was saved at `path`."""

    def spec(value: onnx.ValueInfoProto) -> TensorSpec:
        tensor = value.type.tensor_type
        dims = tuple(d.dim_param if d.HasField("dim_param") else d.dim_value for d in tensor.shape.dim)
        return TensorSpec(value.name, np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name, dims)

    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    inputs, outputs = tuple(map(spec, model.graph.input)), tuple(map(spec, model.graph.output))
    return GraphSpec(path.name, file_digest(path), inputs, outputs, precision, opset)


def write_bundle(
    folder: str | Path,
    graphs: dict[str, tuple[onnx.ModelProto, str]],
    embeddings: np.ndarray,
    codebook_output: np.ndarray,
    tokenizer_json: str,
    parity: dict,
    **manifest,
) -> Bundle:
    """Write a bundle in one step and open it.

    graphs: name -> (model, precision); embeddings (vocabulary + added, hidden), stored as fp16; codebook_output
    (2, hidden) fp32; parity: contents of `parity.json`; **manifest: the remaining fields of
    `pixel_perception.bundle.Manifest`. Raises WritingError; then nothing is left behind and what was at `folder` stays.
    """
    with replacing(folder) as work:
        specs = {}
        for name, (model, precision) in graphs.items():
            path = work / f"{name}.onnx"
            onnx.save(model, path)
            specs[name] = graph_spec(path, model, precision)
        tensors = {"embeddings": embeddings.astype(np.float16), OUTPUT: codebook_output.astype(np.float32)}
        save_file(tensors, work / "language.safetensors")
        (work / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
        finish(work, Manifest(graphs=specs, files={}, **manifest), parity)
    return Bundle.open(folder)


def finish(folder: Path, manifest: Manifest, parity: dict, accepted_drift: str = "") -> None:
    """Write `parity.json` and the manifest of a folder that holds every other file of a bundle; what is no graph is listed here."""
    write_parity(folder, parity)
    graphs = {spec.file for spec in manifest.graphs.values()}
    files = {path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.name not in graphs | {MANIFEST}}
    write_manifest(folder, replace(manifest, files=files, accepted_drift=accepted_drift or manifest.accepted_drift))


def write_parity(folder: Path, figures: dict) -> str:
    """Write `parity.json`, figures of `parity.compare`; returns its SHA-256."""
    (folder / PARITY).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return file_digest(folder / PARITY)


NOT_COMPARED = {"backends": {}, "prompts": 0, "images": 0, "targets": 0, "precision": {}}
"""What `parity.json` says where there is nothing to compare with, or nothing was compared yet."""


def write_parts(
    model,
    folder: str | Path,
    provenance: dict,
    *,
    version: str = "1",
    thresholds: Thresholds | None = None,
    vocabulary: dict | None = None,
    language_precision: str = "int8",
    vision_precision: str = "fp32",
) -> Path:
    """Write what was trained of a `Compact` with its `language`, in one step; returns the folder.

    The manifest is that of the bundle to be, with the graphs that are here, in fp32; `provenance` gets the base weights, the
    LoRA scale and the precisions of language and vision to be assembled. Needs torch; takes a minute or two. Nothing is
    compared: see `prove`.
    """
    from pixel_perception.export.vision import export_vision

    config, state = model.config, {name: t.float().cpu().numpy() for name, t in trained_state(model).items()}
    language = config.language
    base = base_weights.SMOLLM2
    provenance = provenance | {
        "base": {
            "package": f"{base.package}=={base.version}",
            "file": base.member,
            "sha256": base.sha256,
            "licence": base.licence,
        },
        "lora_scale": language.lora_alpha / language.lora_rank,
        "language_precision": language_precision,
        "vision_precision": vision_precision,
    }
    first = language.vocabulary
    with replacing(folder) as work:
        specs, tensors = {}, dict(state)
        for name, graph in export_vision(model).items():
            bones, constants = skeleton.strip(graph, state, name)
            tensors |= constants
            onnx.save(bones, work / f"{name}.onnx")
            specs[name] = graph_spec(work / f"{name}.onnx", bones, "fp32")
        save_file({name: np.require(t, np.float16, "C") for name, t in tensors.items()}, work / TRAINED)
        write_manifest(
            work,
            Manifest(
                name="compact", version=version, licence="Apache-2.0", tasks=TASKS, graphs=specs,
                files={TRAINED: file_digest(work / TRAINED), PARITY: write_parity(work, NOT_COMPARED)},
                image=ImageSpec(config.image.width, config.image.height),
                tokens=Tokens(language.start_id, language.end_id, language.newline_id,
                              tuple(range(first, first + config.codebook.size)), first + config.codebook.size),
                codebook=Codebook(config.codebook.levels, config.codebook.tokens_per_level), thresholds=thresholds or Thresholds(),
                vocabulary=vocabulary or {}, provenance=provenance,
            ),
        )  # fmt: skip
    return Path(folder)


def prove(parts: Path, figures: dict, accepted_drift: str = "") -> None:
    """Let parts say how the bundle that is made of them compares with torch (`parity.compare`)."""
    path = parts / MANIFEST
    manifest = Manifest.from_json(path.read_text(encoding="utf-8"), str(path))
    files = manifest.files | {PARITY: write_parity(parts, figures)}
    write_manifest(parts, replace(manifest, files=files, accepted_drift=accepted_drift))


def trained_state(model) -> dict:
    """Tensors of a `Compact` by the names they have in `trained.safetensors`: its own, LoRA pairs as
    "lora.{layer}.{q|v|o|down}.{A|B}", "embeddings.added" and "codebook_output"."""
    own = {name: t for name, t in model.state_dict().items() if not name.startswith("language.")}
    return (
        own
        | model.language.lora_state()
        | {ADDED: model.language.added.detach(), OUTPUT: model.language.output.detach()}
    )


def load_trained(model, folder: str | Path) -> None:
    """Load `trained.safetensors` of a parts folder into a `Compact` with its `language`, to compare or go on training."""
    import torch

    tensors = {name: torch.from_numpy(t.astype(np.float32)) for name, t in _read_parts(folder)[1].items()}
    with torch.no_grad():
        for name, target in trained_state(model).items():
            target.copy_(tensors[name])


def assemble(
    parts: str | Path, folder: str | Path, language_model: str | Path | None = None
) -> Bundle:
    """Make a bundle of a parts folder and the published base weights; numpy and onnx only.

    `language_model` is the base's GGUF file, where it is already at hand; otherwise it is found or downloaded
    (`base_weights.locate`). Language and vision get the precision that the parts were exported for. A bundle at
    `folder` that was made of the same parts by the same code is opened and kept.
    Raises PerceptionError INVALID_BUNDLE naming the file, what was expected and what was found.
    """
    manifest, tensors = _read_parts(parts)
    precision = manifest.provenance.get("language_precision")
    vision = manifest.provenance.get("vision_precision", "fp32")
    if vision not in eight_bit.PRECISIONS:
        message = f"{Path(parts) / MANIFEST}: expected provenance.vision_precision {' or '.join(eight_bit.PRECISIONS)}, found {vision!r}."
        raise PerceptionError("INVALID_BUNDLE", message)
    made_of = {"parts": file_digest(Path(parts) / MANIFEST), "code": _code_digest()}
    if kept := _kept(folder, made_of):
        return kept
    _check_room(Path(folder))
    expected = manifest.provenance.get("base", {}).get("sha256")
    if expected != base_weights.SMOLLM2.sha256:
        message = f"{Path(parts) / MANIFEST}: expected provenance.base.sha256 {base_weights.SMOLLM2.sha256}, found {expected}."
        raise PerceptionError("INVALID_BUNDLE", message)
    path = (
        base_weights.checked(language_model, base_weights.SMOLLM2)
        if language_model
        else base_weights.language_file()
    )
    base = base_weights.read_gguf(path)
    weights = language_graph.merge_lora(base.weights, tensors, manifest.provenance["lora_scale"])
    graphs = {"language_model": (language_graph.language_graph(base.shape, weights, precision), precision)}
    for name in VISION:
        bones = onnx.load(Path(parts) / manifest.graphs[name].file)
        graph = skeleton.fill(bones, tensors, name)
        if vision == "int8" and name in EIGHT_BIT:
            graph = eight_bit.to_eight_bit(graph)
        graphs[name] = (graph, eight_bit.precision(graph))
    manifest = replace(
        manifest,
        provenance=manifest.provenance | {"assembled": made_of},
        context=min(1024, base.shape.positions),
    )
    fields = {
        name: getattr(manifest, name)
        for name in manifest.__dataclass_fields__
        if name not in ("graphs", "files")
    }
    words = tokenizer.byte_level_tokenizer(base.tokens, base.merges, base.special).to_str()
    rows = np.concatenate([base.weights["embeddings"], tensors[ADDED].astype(np.float32)])
    parity = json.loads((Path(parts) / PARITY).read_text(encoding="utf-8"))
    return write_bundle(folder, graphs, rows, tensors[OUTPUT], words, parity, **fields)


def _read_parts(folder: str | Path) -> tuple[Manifest, dict[str, np.ndarray]]:
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise PerceptionError(
            "INVALID_BUNDLE", f"{path}: expected the manifest of trained parts, found no such file."
        )
    bundle = Bundle.listed(folder)
    manifest, folder = bundle.manifest, bundle.folder
    if missing := [name for name in VISION if name not in manifest.graphs] + [
        n for n in (TRAINED, PARITY) if n not in manifest.files
    ]:
        raise PerceptionError("INVALID_BUNDLE", f"{path}: expected an entry for {missing[0]}, found none.")
    for name, digest in bundle.digests.items():
        verify_file(folder, name, digest)
    try:
        return manifest, load_file(folder / TRAINED)
    except SafetensorError as error:
        raise PerceptionError(
            "INVALID_BUNDLE", f"{folder / TRAINED}: not a safetensors file ({error})."
        ) from error


def _kept(folder: str | Path, made_of: dict) -> Bundle | None:
    if not (Path(folder) / MANIFEST).is_file():
        return None
    try:
        bundle = Bundle.open(folder)
    except PerceptionError:
        return None  # damaged or of another version: made anew
    return bundle if bundle.manifest.provenance.get("assembled") == made_of else None


def _check_room(folder: Path) -> None:
    """Fail before the work, not after it."""
    try:
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder.absolute().parent).free
    except OSError as error:
        message = f"{folder}: cannot be written ({error}); expected a writable folder."
        raise PerceptionError("INVALID_BUNDLE", message) from error
    if free < ROOM:
        message = f"{folder}: expected {ROOM >> 20} MiB of free space for a bundle, found {free >> 20} MiB."
        raise PerceptionError("INVALID_BUNDLE", message)


def _code_digest() -> str:
    """Changes whenever the code that assembles does, so that no bundle of an older version is kept."""
    digest = hashlib.sha256()
    for module in (base_weights, eight_bit, language_graph, skeleton, tokenizer):
        digest.update(Path(module.__file__).read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()

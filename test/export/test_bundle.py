"""Parts and bundles: assembled, kept, refused, never half-written."""

import time
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.numpy import load_file, save_file

from pixel_perception.bundle import MANIFEST, PARITY, Bundle, Manifest, file_digest, write_manifest
from pixel_perception.errors import PerceptionError
from pixel_perception.export import skeleton
from pixel_perception.export.base_weights import SMOLLM2
from pixel_perception.export.bundle import ADDED, NOT_COMPARED, OUTPUT, TASKS, TRAINED, assemble, graph_spec, prove, write_parity
from pixel_perception.export.tiny_vision import tiny_vision

HIDDEN, RANK, LAYERS = 576, 4, 30
PROOF = {"backends": {"onnxruntime-cpu": {"mask_iou": 0.97}}, "prompts": 64, "images": 64, "targets": 1, "precision": {}}
WIDTHS = {"q": (576, 576), "v": (192, 576), "o": (576, 576), "down": (576, 1536)}


def write_small_parts(folder, sha256=SMOLLM2.sha256):
    """Parts with small vision graphs and random LoRA, in the layout of trained ones."""
    rng = np.random.default_rng(0)
    tensors = {ADDED: rng.normal(size=(5, HIDDEN)), OUTPUT: rng.normal(size=(2, HIDDEN))}
    for layer in range(LAYERS):
        for part, (outputs, inputs) in WIDTHS.items():
            tensors[f"lora.{layer}.{part}.A"] = rng.normal(scale=0.02, size=(RANK, inputs))
            tensors[f"lora.{layer}.{part}.B"] = rng.normal(scale=0.02, size=(outputs, RANK))
    folder.mkdir()
    graphs = {}
    for name, graph in tiny_vision(HIDDEN, 16, 18).items():
        bones, constants = skeleton.strip(graph, {}, name)
        tensors |= constants
        onnx.save(bones, folder / f"{name}.onnx")
        graphs[name] = graph_spec(folder / f"{name}.onnx", bones, "fp32")
    save_file({name: t.astype(np.float16) for name, t in tensors.items()}, folder / TRAINED)
    provenance = {"base": {"sha256": sha256}, "lora_scale": 2.0, "language_precision": "int8", "vision_precision": "int8"}
    files = {TRAINED: file_digest(folder / TRAINED), PARITY: write_parity(folder, NOT_COMPARED)}
    write_manifest(folder, Manifest("compact", "7", "Apache-2.0", TASKS, graphs, files, provenance=provenance))
    prove(folder, PROOF, "mask_iou is 0.97. Accepted: a test")
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return write_small_parts(tmp_path_factory.mktemp("parts") / "compact")


@pytest.fixture(scope="module")
def bundle(parts, tmp_path_factory):
    return assemble(parts, tmp_path_factory.mktemp("bundles") / "compact")


@pytest.fixture
def copy(parts, tmp_path):
    """A copy of the parts to damage."""
    folder = tmp_path / "parts"
    folder.mkdir()
    for path in parts.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_assembled_bundle(bundle, parts):
    manifest = bundle.manifest
    assert (manifest.name, manifest.version, manifest.tasks) == ("compact", "7", TASKS)
    assert manifest.provenance["assembled"]["parts"] == file_digest(parts / MANIFEST)
    assert bundle.parity == PROOF and manifest.accepted_drift == "mask_iou is 0.97. Accepted: a test"
    language = load_file(bundle.file("language.safetensors"))
    trained = load_file(parts / TRAINED)
    assert language["embeddings"].shape == (49157, HIDDEN) and language["embeddings"].dtype == np.float16
    np.testing.assert_array_equal(language["embeddings"][-5:], trained[ADDED])
    np.testing.assert_array_equal(language["codebook_output"], trained[OUTPUT].astype(np.float32))
    spec = manifest.graphs["language_model"]
    assert spec.precision == "int8" and len(spec.inputs) == 4 + 2 * LAYERS
    assert {t.name: t.shape for t in spec.outputs}["logits"] == (1, "asked", 49152)
    assert {name for name, graph in manifest.graphs.items() if graph.precision == "int8"} == {"language_model", "token_fusion"}


def test_graphs_run_and_hold_only_fp32_weights(bundle):
    image = np.random.default_rng(0).integers(0, 256, (2, 288, 384, 3), np.uint8)
    for name in ("image_encoder", "pixel_decoder"):
        kinds = {t.data_type for t in onnx.load(bundle.graph(name)).graph.initializer}
        assert onnx.TensorProto.FLOAT16 not in kinds
    session = onnxruntime.InferenceSession(bundle.graph("image_encoder"), providers=["CPUExecutionProvider"])
    assert [o.shape for o in session.run(None, {"image": image})] == [
        (2, 128, 18, 24),
        (2, 128, 36, 48),
        (2, 16, 72, 96),
    ]


def test_a_bundle_of_the_same_is_kept(bundle, parts):
    before = bundle.file("tokenizer.json").stat().st_mtime_ns
    started = time.monotonic()
    assert assemble(parts, bundle.folder).digest == bundle.digest
    assert bundle.file("tokenizer.json").stat().st_mtime_ns == before
    assert time.monotonic() - started < 20


def test_a_damaged_bundle_is_made_anew_and_equal(bundle, parts):
    path = bundle.file("language.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(PerceptionError, match="language.safetensors: expected SHA-256"):
        Bundle.open(bundle.folder)
    assert assemble(parts, bundle.folder).digest == bundle.digest
    assert [p.name for p in bundle.folder.parent.iterdir()] == [bundle.folder.name]


@pytest.mark.parametrize("name", [TRAINED, "image_encoder.onnx"])
def test_a_flipped_byte_in_the_parts(copy, tmp_path, name):
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(PerceptionError, match=f"{name}: expected SHA-256 .* found "):
        assemble(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_parts(copy, tmp_path):
    (copy / "proposals.onnx").unlink()
    with pytest.raises(PerceptionError, match="proposals.onnx: expected a file with SHA-256 .* found no such file"):
        assemble(copy, tmp_path / "out")
    manifest = Bundle.listed(copy).manifest
    write_manifest(copy, replace(manifest, graphs={name: g for name, g in manifest.graphs.items() if name != "proposals"}))
    with pytest.raises(PerceptionError, match="expected an entry for proposals"):
        assemble(copy, tmp_path / "out")
    (copy / MANIFEST).unlink()
    with pytest.raises(PerceptionError, match="expected the manifest of trained parts"):
        assemble(copy, tmp_path / "out")


def test_another_base_and_another_language_file(tmp_path, parts):
    other = write_small_parts(tmp_path / "other", sha256="f" * 64)
    with pytest.raises(PerceptionError, match="expected provenance.base.sha256 .* found ffff"):
        assemble(other, tmp_path / "out")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(PerceptionError, match="model.gguf: expected SHA-256"):
        assemble(parts, tmp_path / "out", tmp_path / "model.gguf")


def test_an_unknown_precision_of_vision(copy, tmp_path):
    manifest = Bundle.listed(copy).manifest
    write_manifest(copy, replace(manifest, provenance=manifest.provenance | {"vision_precision": "int3"}))
    with pytest.raises(PerceptionError, match="manifest.json: expected provenance.vision_precision fp32 or int8, found 'int3'"):
        assemble(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written(tmp_path, parts):
    (tmp_path / "file").write_text("")
    with pytest.raises(PerceptionError, match="cannot be written"):
        assemble(parts, tmp_path / "file" / "bundle")


def test_a_full_disk(tmp_path, parts, monkeypatch):
    monkeypatch.setattr("pixel_perception.export.bundle.ROOM", 1 << 60)
    with pytest.raises(PerceptionError, match="out: expected .* MiB of free space for a bundle, found"):
        assemble(parts, tmp_path / "out")

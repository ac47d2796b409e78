"""`pixel-perception inspect` and `pixel-perception bundle verify` on whole, damaged and dishonest bundles."""

import dataclasses
import json
import shutil

import numpy as np
import onnx
import pytest
from PIL import Image

from pixel_perception import cli
from pixel_perception.bundle import FAMILIES, FILES, MANIFEST, Bundle, file_digest, write_manifest
from pixel_perception.export.bundle import prove
from pixel_perception.export.tiny import write_tiny_bundle


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny").folder


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def run(capsys, *arguments):
    """Exit code, standard output, standard error."""
    code = cli.main([str(a) for a in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_verify_reports_every_size(capsys, whole):
    code, out, err = run(capsys, "bundle", "verify", whole, "--json")
    report = json.loads(out)
    assert (code, err, report["problems"]) == (0, "", [])
    sizes = {path.name: path.stat().st_size for path in whole.iterdir() if path.name != MANIFEST}
    assert {entry["file"]: entry["bytes"] for entry in report["files"]} == sizes
    assert report["bytes"] == sum(sizes.values())
    code, out, _ = run(capsys, "bundle", "verify", whole)
    assert code == 0 and out.count("as listed") == len(sizes)


@pytest.mark.parametrize("name", [MANIFEST, *(f"{graph}.onnx" for graph in FAMILIES["compact"]), *FILES])
def test_verify_finds_a_flipped_byte(capsys, copy, name):
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 3] ^= 4
    (copy / name).write_bytes(data)
    code, out, err = run(capsys, "bundle", "verify", copy)
    assert code == 2 and err.count("\n") == 1
    assert str(copy / name) in err and "expected" in err and "found" in err
    assert out.count("damaged") == (name != MANIFEST)


def test_verify_counts_what_is_missing(capsys, copy):
    (copy / "proposals.onnx").unlink()
    (copy / "tokenizer.json").unlink()
    code, out, err = run(capsys, "bundle", "verify", copy)
    assert code == 2 and out.count("damaged") == 2
    assert "proposals.onnx: expected a file with SHA-256" in err and "(1 more)" in err


def test_verify_compares_graphs_with_the_manifest(capsys, copy):
    """Digests of a graph that is not what the manifest says of it: somebody's own tool wrote both."""
    path = copy / "location_head.onnx"
    graph = onnx.load(path)
    graph.opset_import[0].version = 21
    onnx.save(graph, path)
    manifest = Bundle.listed(copy).manifest
    graphs = manifest.graphs | {"location_head": dataclasses.replace(manifest.graphs["location_head"], sha256=file_digest(path))}
    write_manifest(copy, dataclasses.replace(manifest, graphs=graphs))
    code, _, err = run(capsys, "bundle", "verify", copy)
    assert code == 2 and f"{path}: expected opset 20, found 21." in err


def test_inspect_shows_graphs_parity_and_drift(capsys, copy):
    figures = {"backends": {"onnxruntime-cpu": {"mask_iou": 0.97}}, "prompts": 70, "images": 33, "targets": 80, "precision": {}}
    prove(copy, figures, "mask_iou is 0.97. Accepted: a test")
    code, out, err = run(capsys, "inspect", copy)
    assert (code, err) == (0, "")
    for line in ("queries float32 (batch, targets, 2, 128)", "boxes float32 (batch, regions, 4)", "fp32, opset 20", "MB, every digest",
                 "70 prompts, 33 images", "onnxruntime-cpu: mask_iou 0.97", "accepted drift: mask_iou is 0.97. Accepted: a test",
                 "weights set by hand"):  # fmt: skip
        assert line in out
    code, out, _ = run(capsys, "inspect", copy, "--json")
    assert json.loads(out)["accepted_drift"].endswith("a test")


def test_ask_tells_of_accepted_drift(capsys, copy, tmp_path):
    Image.fromarray(np.full((60, 80, 3), 90, np.uint8)).save(tmp_path / "grey.png")
    code, _, err = run(capsys, "ask", tmp_path / "grey.png", "the red mug", "--bundle", copy)
    assert (code, err) == (0, "")
    prove(copy, {"backends": {}, "prompts": 0, "images": 0}, "mask_iou is 0.97. Accepted: a test")
    code, out, err = run(capsys, "ask", tmp_path / "grey.png", "the red mug", "--bundle", copy, "--json")
    assert code == 0 and json.loads(out)
    assert err == "pixel-perception: this bundle differs from its training: mask_iou is 0.97. Accepted: a test\n"


def test_a_folder_of_parts_is_read_too(capsys, copy):
    (copy / "language_model.onnx").unlink()
    manifest = Bundle.listed(copy).manifest
    write_manifest(copy, dataclasses.replace(manifest, graphs={n: g for n, g in manifest.graphs.items() if n != "language_model"}))
    assert run(capsys, "bundle", "verify", copy)[0] == 0
    assert "language_model" not in run(capsys, "inspect", copy)[1]

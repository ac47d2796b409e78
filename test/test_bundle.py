import dataclasses
import hashlib
import json
import shutil

import pytest

from pixel_perception.bundle import MANIFEST, Bundle, Manifest, default_folder, file_digest, write_manifest
from pixel_perception.errors import CODES, PerceptionError
from pixel_perception.export.tiny import write_tiny_bundle


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole.folder, tmp_path / "copy")


def _refused(folder):
    with pytest.raises(PerceptionError) as caught:
        Bundle.open(folder)
    assert caught.value.code == "INVALID_BUNDLE"
    assert "\n" not in caught.value.message and "expected" in caught.value.message and "found" in caught.value.message
    return caught.value.message


def _change(folder, **values):
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    manifest.update(values)
    path.write_text(json.dumps({k: v for k, v in manifest.items() if v is not None}))


def test_opens_and_knows_its_digest(whole, copy):
    bundle = Bundle.open(copy)
    assert bundle.digest == whole.digest == hashlib.sha256((copy / MANIFEST).read_bytes()).hexdigest()
    assert bundle.graph("proposals").is_file() and bundle.file("tokenizer.json").is_file()


def test_manifest_comes_back(whole):
    assert Manifest.from_json(whole.manifest.to_json()) == whole.manifest


def test_missing_folder_names_the_manifest_and_the_remedy(tmp_path):
    message = _refused(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere" / MANIFEST) in message and "pixel-perception assemble" in message


@pytest.mark.parametrize("name", ["image_encoder.onnx", "tokenizer.json", "language.safetensors"])
def test_missing_file(copy, name):
    digest = file_digest(copy / name)
    (copy / name).unlink()
    message = _refused(copy)
    assert str(copy / name) in message and digest in message


@pytest.mark.parametrize("name", ["image_encoder.onnx", "language_model.onnx", "tokenizer.json", "language.safetensors"])
def test_flipped_byte(copy, name):
    before = file_digest(copy / name)
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    message = _refused(copy)
    assert str(copy / name) in message and before in message and file_digest(copy / name) in message


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_unknown_format_version(copy, version):
    _change(copy, format=version)
    message = _refused(copy)
    assert "format 1" in message and repr(version) in message


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"name": None}, "name"),
        ({"name": 3}, "name"),
        ({"surprise": 1}, "surprise"),
        ({"graphs": {}}, "image_encoder"),
        ({"files": {}}, "language.safetensors"),
        ({"tokens": {"segments": [1, "two"]}}, "segments[1]"),
        ({"tokens": {"segments": [1, 2]}}, "tokens.segments"),
        ({"context": True}, "context"),
        ({"image": {"width": 384.5}}, "width"),
        ({"files": {"language.safetensors": "0", "tokenizer.json": "0", "../secret": "0"}}, "../secret"),
    ],
)
def test_manifest_that_is_not_as_expected(copy, change, named):
    _change(copy, **change)
    if "../secret" in json.dumps(change):
        _change(copy, files={n: file_digest(copy / n) for n in ("language.safetensors", "tokenizer.json")} | {"../secret": "0"})
    assert named in _refused(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00\xff"])
def test_manifest_that_is_no_manifest(copy, text):
    (copy / MANIFEST).write_text(text)
    assert MANIFEST in _refused(copy)


def test_a_manifest_that_cannot_be_written_leaves_the_old_one(whole, copy):
    other = dataclasses.replace(whole.manifest, provenance={"run": object()})
    with pytest.raises(TypeError):
        write_manifest(copy, other)
    assert Bundle.open(copy).digest == whole.digest


def test_default_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("PIXEL_PERCEPTION_BUNDLE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "pixel_perception" / "bundles" / "compact"
    monkeypatch.setenv("PIXEL_PERCEPTION_BUNDLE", str(tmp_path / "mine"))
    assert default_folder() == tmp_path / "mine"


def test_error_codes_are_closed():
    assert PerceptionError("TIMEOUT", "x").code in CODES
    with pytest.raises(ValueError, match="NO_SUCH_CODE"):
        PerceptionError("NO_SUCH_CODE", "x")

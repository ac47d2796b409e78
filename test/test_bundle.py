import dataclasses
import hashlib
import json
import random
import shutil

import pytest

from pixel_perception.bundle import FAMILIES, FILES, MANIFEST, Bundle, Manifest, default_folder, file_digest, write_manifest
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
    """Edit the manifest and seal it again, as somebody would who writes bundles with other tools."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_text()) | values
    manifest = {k: v for k, v in manifest.items() if v is not None and k != "seal"}
    path.write_text(json.dumps(manifest | {"seal": hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()}))


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


def _flip(path, place=None):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", [*(f"{graph}.onnx" for graph in FAMILIES["compact"]), *FILES])
def test_flipped_byte(copy, name):
    before = file_digest(copy / name)
    _flip(copy / name)
    message = _refused(copy)
    assert str(copy / name) in message and before in message and file_digest(copy / name) in message


def test_flipped_byte_in_the_manifest(copy):
    text = (copy / MANIFEST).read_bytes()
    for place in random.Random(0).sample(range(len(text) - 1), 200):
        _flip(copy / MANIFEST, place)
        assert MANIFEST in _refused(copy)
        (copy / MANIFEST).write_bytes(text)


@pytest.mark.parametrize("name", ["image_encoder.onnx", "language.safetensors", "parity.json"])
def test_truncated_download(copy, name):
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[: len(data) // 3])
    assert str(copy / name) in _refused(copy)


@pytest.mark.parametrize("version", [0, 1, 3, "2", None])
def test_unknown_format_version(copy, version):
    _change(copy, format=version)
    message = _refused(copy)
    assert "format 2" in message and repr(version) in message


def test_edited_manifest(copy):
    text = (copy / MANIFEST).read_text()
    (copy / MANIFEST).write_text(text.replace('"presence": 0.5', '"presence": 0.6'))
    assert "expected contents with SHA-256" in _refused(copy)
    (copy / MANIFEST).write_text(json.dumps(json.loads(text)))  # laid out anew, and otherwise the same
    Bundle.open(copy)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"name": None}, "name"),
        ({"name": 3}, "name"),
        ({"surprise": 1}, "surprise"),
        ({"graphs": {}}, "image_encoder"),
        ({"files": {}}, "language.safetensors"),
        ({"files": {"language.safetensors": "0", "tokenizer.json": "0"}}, "parity.json"),
        ({"tokens": {"segments": [1, "two"]}}, "segments[1]"),
        ({"tokens": {"segments": [1, 2]}}, "tokens.segments"),
        ({"context": True}, "context"),
        ({"image": {"width": 384.5}}, "width"),
        ({"files": {"language.safetensors": "0", "tokenizer.json": "0", "parity.json": "0", "../secret": "0"}}, "../secret"),
    ],
)
def test_manifest_that_is_not_as_expected(copy, change, named):
    _change(copy, **change)
    if "../secret" in json.dumps(change):
        _change(copy, files={n: file_digest(copy / n) for n in FILES} | {"../secret": "0"})
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

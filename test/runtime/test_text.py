import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixel_perception.errors import PerceptionError
from pixel_perception.runtime.text import CompactVocabulary, Stream, _tensors, sentencepiece, words


@given(st.text(max_size=30), st.data())
def test_a_stream_of_any_cut_is_the_text(text, data):
    raw, stream, pieces = text.encode(), Stream(), []
    while raw:
        n = data.draw(st.integers(1, min(4, len(raw))))
        pieces.append(stream.add(raw[:n]))
        raw = raw[n:]
    assert "".join(pieces) == stream.text == text.lstrip()
    assert len(stream) == len(text.lstrip().encode())


def test_labels_are_what_stands_between_groups():
    stream, seen = Stream(), []
    for piece in (" the réd mug", ", ", "android toy", " and", " sandy beach", " , and  "):
        stream.add(piece.encode())
        if piece in (" the réd mug", "android toy", " sandy beach", " , and  "):
            label, (begin, end) = stream.label()
            assert stream.text.encode()[begin:end].decode() == label
            seen.append(label)
    assert seen == ["the réd mug", "android toy", "sandy beach", ""]


def test_words_gather_their_tokens():
    tokens = [(0, 2), (2, 5), (5, 6), (6, 14), (14, 15)]
    assert words("bécs, t-shirts.", tokens) == [(0, 5, [0, 1]), (7, 15, [3, 4])]
    assert words(" , .", [(0, 4)]) == [] and words("mug", []) == []


def test_question_is_written_as_in_training(tiny):
    vocabulary = CompactVocabulary(tiny)
    ids = vocabulary.question("The  mug\nand the BANANA?! ")
    assert b"".join(map(vocabulary.spelling, ids)) == b" the mug and the banana"


def test_control_tokens_in_a_question_are_mere_text(tiny):
    vocabulary = CompactVocabulary(tiny)
    ids = vocabulary.question("<|im_end|> mug <|im_start|>")
    assert not {0, 1, 2} & set(ids)
    assert b"".join(map(vocabulary.spelling, ids)) == b" <|im_end|> mug <|im_start|>"
    assert vocabulary.spelling(2) == b""


@given(st.text(max_size=20))
def test_any_question_can_be_spelt_back(text):
    vocabulary = _VOCABULARY[0]
    expected = " " + " ".join(text.lower().split()).rstrip(".!? ")
    assert b"".join(map(vocabulary.spelling, vocabulary.question(text))) == expected.encode()


_VOCABULARY = []


@pytest.fixture(autouse=True, scope="module")
def _shared(tiny):
    _VOCABULARY[:] = [CompactVocabulary(tiny)]


def test_embeddings_are_the_file_rows(tiny):
    from safetensors.numpy import load_file

    table = load_file(tiny.file("language.safetensors"))
    vocabulary = CompactVocabulary(tiny)
    assert np.array_equal(vocabulary.embed([5, 2, len(table["embeddings"]) - 1]), table["embeddings"][[5, 2, -1]].astype(np.float32))
    assert np.array_equal(vocabulary.codebook_output, table["codebook_output"])


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"{}", b"\x04" + b"\0" * 7 + b"[1,]"])
def test_tensors_of_a_damaged_file(tmp_path, content):
    path = tmp_path / "language.safetensors"
    path.write_bytes(content)
    with pytest.raises(PerceptionError, match="language.safetensors: expected safetensors"):
        _tensors(path, "embeddings", "codebook_output")


def test_tensors_that_reach_beyond_the_file(tmp_path):
    header = json.dumps({n: {"dtype": "F32", "shape": [900, 9], "data_offsets": [0, 32400]} for n in ("embeddings", "codebook_output")})
    path = tmp_path / "language.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + b"\0" * 16)
    with pytest.raises(PerceptionError, match="expected safetensors"):
        _tensors(path, "embeddings", "codebook_output")


@pytest.mark.parametrize(("pieces", "text"), [
    ([" the mug", None, " and", " a bowl", None, ".", " Done"], "the mug and a bowl. Done"),
    ([None, " is it"], "is it"), ([" one", None, None, " ", " two", None, " ,", " three"], "one two, three"),
])  # fmt: skip
def test_an_interruption_gives_back_the_space_that_it_swallowed(pieces, text):
    stream, said = Stream(), []
    for piece in pieces:
        said.append(stream.interrupt() or "" if piece is None else stream.add(piece.encode()))
    assert "".join(said) == stream.text == text


def test_sentencepiece_names():
    assert [sentencepiece(name) for name in ("▁the", "<0x0A>", "é", "<0x0a>", "▁")] == [b" the", b"\n", "é".encode(), b"<0x0a>", b" "]

"""Both papers' text: the template of published weights as ids, labels, the codebook, places of pieces; tokenizers that do not fit."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken
from tokenizers_on_the_spot import SENTENCES, llama, tokenizer_for, write_sentencepiece, write_tokenizer

from pixel_perception.models.configurations import configuration
from pixel_perception.models.losses import IGNORE
from pixel_perception.models.pixelllm.text import PixelLLMText
from pixel_perception.models.pixellm.codebook import CodebookConfig
from pixel_perception.models.pixellm.model import IMAGE_SLOT
from pixel_perception.models.pixellm.text import SYSTEM, PixelLMText
from pixel_perception.models.tokenizer_files import TokenizerError

CONFIG = configuration("pixellm-tiny")
GOLDEN = Path(__file__).parent.parent / "golden" / "pixellm_text.npz"


@pytest.fixture(scope="module")
def text():
    return PixelLMText(tokenizer_for(CONFIG), CONFIG)


def said(text, ids):
    """Ids as the template is written down, every stretch between added tokens on its own."""
    return [IMAGE_SLOT if i == IMAGE_SLOT else text.tokenizer.id_to_token(i) for i in ids]


def test_prompt_is_the_template_of_the_release(text):
    encode = text._encode
    start, end = (text.tokenizer.token_to_id(mark) for mark in ("<im_start>", "<im_end>"))
    expected = [1, *encode(f"{SYSTEM} USER:"), start, IMAGE_SLOT, end, *encode("Where is the mug? ASSISTANT:")]
    assert text.prompt("Where is the mug?") == text.prompt(" Where is the mug?\n") == expected
    assert said(text, expected)[-2:] != ["▁", IMAGE_SLOT] and said(text, expected)[-1].endswith(":")
    # the line break behind the image was swallowed with the spaces around <im_end>: a fresh stretch of text follows
    assert text.tokenizer.id_to_token(expected[expected.index(end) + 1]).startswith("▁")


def test_row_supervises_answers_and_their_end_and_nothing_else(text):
    book = CONFIG.codebook.ids
    ids, labels = text.row([("Where are they?", "It is {seg} and {seg}."), ("And now?", "{seg}.")])
    first = text._encode("It is") + book + text._encode("and") + book + text._encode(".") + [2]
    second = book + text._encode(".") + [2]
    assert ids == text.prompt("Where are they?") + first + text._encode("USER: And now? ASSISTANT:") + second
    assert [i for i in labels if i != IGNORE] == first + second
    assert all(label in (IGNORE, i) for i, label in zip(ids, labels, strict=True)) and ids.count(IMAGE_SLOT) == 1
    assert text.prompt("And now?", [("Where are they?", "It is {seg} and {seg}.")]) == ids[: -len(second)]


def test_decoding_shows_the_slots(text):
    answer = "It is {seg} and {seg}, the largest: {seg}."
    _, labels = text.row([("?", answer)])
    assert text.decode([i for i in labels if i != IGNORE]) == answer
    assert text.decode([*CONFIG.codebook.ids[:4], *text._encode("gone")]) == "gone"
    assert text.decode([*CONFIG.codebook.ids, *CONFIG.codebook.ids]) == "{seg} {seg}" and text.decode([]) == ""
    assert text.decode(text._encode("café, 日本")) == "café, 日本"


def test_a_long_row_loses_its_end_and_no_part_of_a_run(text):
    most = CONFIG.longest - CONFIG.pooled**2 + 1
    asked = len(text.prompt("?"))
    for answer in ("{seg} " * 100, "a " + "{seg} " * 100, "word " * 600):
        ids, labels = text.row([("?", answer)])
        assert most - CONFIG.codebook.length < len(ids) <= most and len(labels) == len(ids)
        assert sum(CONFIG.codebook.contains(i) for i in ids) % CONFIG.codebook.length == 0
    assert len(ids) == most and asked < most


def test_one_token_codebooks_have_the_single_name():
    config = replace(CONFIG, codebook=CodebookConfig(1023, 1, 1), vision=replace(CONFIG.vision, levels=(-1,)),
                     decoder=replace(CONFIG.decoder, levels=1))  # fmt: skip
    text = PixelLMText(llama(1024, 1), config)
    assert text.tokenizer.token_to_id("[SEG]") == 1023 and 1023 in text.row([("?", "{seg}")])[0]


@pytest.mark.parametrize("name", ["pixelllm-tiny", "pixelllm-small-tiny"])
def test_pieces_know_their_place_in_the_text(name, tmp_path):
    config = configuration(name)
    text = PixelLLMText.open(write_tokenizer(tmp_path, config), config)
    caption = " a photo of two cups – on the table"
    pieces = text.pieces(caption)
    words = [caption.encode()[begin:end].decode() for _, begin, end in pieces]
    assert "".join(words) == caption.replace(" ", "") and not any(" " in word for word in words)
    assert [begin for _, begin, _ in pieces] == sorted(begin for _, begin, _ in pieces)
    ids = [i for i, _, _ in pieces]
    assert text.tokens(caption, 99) == [config.begin, *ids, config.end]
    assert text.tokens(caption, 5) == [config.begin, *ids[:3], config.end]
    assert text.context("an object of ", 8)[-1] == config.end and len(text.context(caption, 8)) == 8
    plain = "a photo of two cups on the table"
    assert text.decode([*text.tokens(plain, 99), 0, 0]) == plain == text.decode(text.context(plain, 99))


@pytest.mark.parametrize("name", ["pixellm-tiny", "pixelllm-tiny"])
def test_a_sentencepiece_file_gives_the_same_ids(name, tmp_path):
    config, kind = configuration(name), PixelLMText if name == "pixellm-tiny" else PixelLLMText
    ours, theirs = kind(tokenizer_for(config), config), kind.open(write_sentencepiece(tmp_path, config), config)
    for sentence in (*SENTENCES, "the  red mug", "café – 日本", "[SEG0] and </s>"):
        a, b = (text.tokenizer.encode(sentence, add_special_tokens=False).ids for text in (ours, theirs))
        assert a == b and ours.decode(a) == theirs.decode(a)
    with pytest.raises(TokenizerError, match="cannot be read as one"):
        (tmp_path / "tokenizer.model").write_bytes(b"weights")
        kind.open(tmp_path, config)


def test_added_tokens_may_stand_in_a_file_of_their_own(tmp_path):
    folder = write_tokenizer(tmp_path, CONFIG)
    stored = json.loads((folder / "tokenizer.json").read_text())
    late = {t["content"]: t["id"] for t in stored["added_tokens"] if t["id"] >= CONFIG.codebook.first}
    stored["added_tokens"] = [t for t in stored["added_tokens"] if t["id"] < CONFIG.codebook.first]
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    (folder / "added_tokens.json").write_text(json.dumps(late))
    assert PixelLMText.open(folder, CONFIG).row([("?", "{seg}")]) == PixelLMText(tokenizer_for(CONFIG), CONFIG).row([("?", "{seg}")])
    (folder / "added_tokens.json").write_text(json.dumps(dict.fromkeys(late, 29871)))
    with pytest.raises(TokenizerError, match=r"added_tokens.json: expected id 1018 for '\[SEG0\]', found 29871"):
        PixelLMText.open(folder, CONFIG)


def test_tokenizers_that_do_not_belong_are_one_sentence(tmp_path):
    small = configuration("pixelllm-small-tiny")
    with pytest.raises(TokenizerError, match="expected a tokenizer .*tokenizer.json.*, found none"):
        PixelLMText.open(tmp_path, CONFIG)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="cannot be read as one"):
        PixelLMText.open(tmp_path, CONFIG)
    with pytest.raises(TokenizerError, match="expected a tokenizer of 1024 tokens as the network has, found 1000"):
        PixelLMText(llama(1000), CONFIG)
    split = llama(1018)
    split.add_tokens([AddedToken(f"<late{i}>") for i in range(6)])
    with pytest.raises(TokenizerError, match=r"consecutive ids 1018 to 1023, found \[1012, "):
        PixelLMText(split, CONFIG)
    with pytest.raises(TokenizerError, match="expected the token '<pad>'"):
        PixelLLMText(tokenizer_for(small), replace(configuration("pixelllm-tiny"), begin=0))
    with pytest.raises(TokenizerError, match=r"expected '\[CLS\]' to have the id 101, found 2"):
        PixelLLMText(tokenizer_for(small), replace(small, begin=101, end=102))
    with pytest.raises(TokenizerError, match="expected a tokenizer of 600 tokens as the network has, found 512"):
        PixelLLMText(tokenizer_for(small), replace(small, language=replace(small.language, vocabulary=600)))


def test_ids_and_labels_are_those_of_the_release(tmp_path):
    """A small SentencePiece model, and what the libraries that the release pins (transformers 4.31, the slow LLaMA tokenizer)

    made of conversations with the release's template and label masks.
    """
    with np.load(GOLDEN) as stored:
        (tmp_path / "tokenizer.model").write_bytes(stored["tokenizer"].tobytes())
        (tmp_path / "added_tokens.json").write_text(str(stored["added"]))
        cases = json.loads(str(stored["cases"]))
    config = replace(CONFIG, language=replace(CONFIG.language, vocabulary=708), codebook=CodebookConfig(700))
    text = PixelLMText.open(tmp_path, config)
    assert len(cases) == 4
    for case in cases:
        assert text.row(case["turns"]) == (case["ids"], [IGNORE if i == IMAGE_SLOT else i for i in case["labels"]])
        assert text.prompt(case["turns"][0][0]) == case["prompt"]
        assert text.decode([i for i in case["labels"] if i != IGNORE]).split(" ")[-1] == case["turns"][-1][1].split(" ")[-1]

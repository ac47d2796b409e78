"""Caption scores against cases worked out by hand. METEOR and the Treebank tokeniser run where Java is."""

import functools
import math

import numpy as np
import pytest

from pixel_perception.evaluation import captions

pytest.importorskip("pycocoevalcap", reason="captions are scored by pycocoevalcap")
java = pytest.mark.skipif(not captions.has_java(), reason="METEOR and the Penn Treebank tokeniser are Java programs")


@pytest.fixture
def no_java(monkeypatch):
    monkeypatch.setattr(captions, "has_java", lambda: False)


def test_bleu_and_rouge_by_hand(no_java):
    out = captions.score({"a": "A red mug stands here."}, {"a": ["a red mug stands on the table", "here stands a mug"]})
    # All five words are in a reference; pairs: "a red", "red mug", "mug stands" of four; triples: two of three; one of two.
    # The closest reference in length has four words, so nothing is taken off for shortness.
    one, two, three, four = 5 / 5, 3 / 4, 2 / 3, 1 / 2
    assert out.bleu == pytest.approx((one, (one * two) ** (1 / 2), (one * two * three) ** (1 / 3), (one * two * three * four) ** (1 / 4)))
    # Longest common subsequences: "a red mug stands" of 5 and 7, "a mug" (or "stands here" ...) of 5 and 4. Best of each, beta 1.2.
    precision, recall = 4 / 5, 4 / 7
    assert out.rouge_l == pytest.approx(2.44 * precision * recall / (recall + 1.44 * precision))
    assert out.meteor is None and out.meteor_mean is None and out.tokeniser == "plain"
    assert any("No Java" in note for note in out.notes)


def test_cider_by_hand(no_java):
    out = captions.score({1: "red mug", 2: "a cat"}, {1: ["red mug"], 2: ["green plant"]})
    # Words and pairs of the first agree (cosine 1 each), triples and fours do not exist (0): mean of four, times ten.
    assert out.cider == pytest.approx((10 * 2 / 4 + 0) / 2)
    assert out.cider_documents == 2 and "these 2 captions" in out.notes[0]


def test_cider_counts_documents_in_this_set(no_java):
    # "mug" is in both sets of references, weight ln(2/2) = 0; "red" in one, ln 2. So "red cup" agrees in all the weight that
    # "red mug" has, but has the weight of "cup" beside it: cosine 1 / sqrt 2 for words, 0 for pairs.
    out = captions.score({1: "red cup", 2: "dog"}, {1: ["red mug"], 2: ["blue mug"]})
    assert out.cider == pytest.approx(10 / 4 / math.sqrt(2) / 2)
    alone = captions.score({1: "red mug"}, {1: ["red mug"]})
    assert alone.cider == 0 and any("one caption" in note for note in alone.notes)


def test_plain_tokens():
    assert captions.plain_tokens('The dog\'s "ball" (red, 2-wheeled).\n') == "the dog's ball red 2-wheeled"


def test_an_empty_caption_scores_nothing(no_java):
    out = captions.score({1: "", 2: "a red mug on it"}, {1: ["a cat"], 2: ["a red mug on it"]})
    assert out.rouge_l == pytest.approx(0.5) and out.row()["n"] == 2


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="no captions"):
        captions.score({}, {})
    with pytest.raises(ValueError, match="'b' is only in one"):
        captions.score({"a": "x"}, {"a": ["x"], "b": ["y"]})
    for wrong in ([], [" "], "a text"):
        with pytest.raises(ValueError, match="references of 'a'"):
            captions.score({"a": "x"}, {"a": wrong})


def test_without_java_meteor_says_so(no_java):
    with pytest.raises(RuntimeError, match="no java"):
        captions.meteor_each(["a"], [["a"]])


@java
def test_treebank_tokens_keep_count():
    texts = ["The dog's ball, red!", "", "two\nlines\u2028here (now)", "Größe"]
    assert captions.ptb_tokens(texts) == ["the dog 's ball red", "", "two lines here -lrb- now -rrb-", "größe"]


@java
def test_meteor():
    out = captions.score({1: "a red mug on the table", 2: "zebra"}, {1: ["a red mug on the table"], 2: ["seven clouds", "rain"]})
    assert out.tokeniser == "ptb" and len(out.notes) == 1
    # METEOR 1.5 of equal texts is 1; without a common word, stem, synonym or paraphrase 0. The set's is from summed matches.
    assert out.meteor_mean == pytest.approx(0.5) and 0 < out.meteor < 1
    each = captions.meteor_each(["a red mug on the table", "", "zebra ||| x"], [["a red mug on the table"], ["a"], ["rain"]])
    assert each == pytest.approx(np.array([1.0, 0, 0]))


@java
def test_meteor_that_dies_is_an_error(monkeypatch):
    from pycocoevalcap.meteor import meteor

    # Another process than the one that the other tests share and that takes seconds to start.
    monkeypatch.setattr(captions, "_meteor_process", functools.lru_cache(captions._meteor_process.__wrapped__))
    monkeypatch.setattr(meteor, "METEOR_JAR", "not-there.jar")
    with pytest.raises(RuntimeError, match="METEOR failed"):
        captions.meteor_each(["a"], [["a"]])

"""Reading ahead: right guesses save steps, wrong ones change nothing."""

import numpy as np
import pytest

from pixel_perception.runtime import drafting
from pixel_perception.runtime.compact import CompactLanguage
from pixel_perception.runtime.drafting import Ahead, draft
from pixel_perception.runtime.language import Answer, Group
from pixel_perception.runtime.onnxruntime import OnnxRuntime

GROUP = (90, 91, 92, 93)


class Counted:
    """A decoder that remembers how many positions each of its steps read."""

    def __init__(self, decoder):
        self.decoder, self.hidden, self.steps = decoder, decoder.hidden, []

    def read(self, parts, past, asked=None):
        self.steps.append(sum(map(len, parts)))
        return self.decoder.read(parts, past, asked)


@pytest.fixture
def language(tiny):
    found = CompactLanguage(tiny, OnnxRuntime(threads=1))
    found.decoder = Counted(found.decoder)
    return found


@pytest.fixture
def prefix(language):
    visual = np.random.default_rng(0).normal(0, 0.3, (6, 64)).astype(np.float32)
    past = language.prefix(visual)
    language.decoder.steps.clear()
    return past


def run(language, prefix, question, most=96):
    answer = Answer()
    events = list(language.answer(prefix, question, None, most, answer))
    steps, language.decoder.steps = language.decoder.steps[1:], []  # the first reads the question
    return answer, events, steps


def words(language, text):
    return language.vocabulary.question(text)


def test_a_draft_repeats_the_names_of_a_question(language):
    (red, mug), banana, comma = words(language, "red mug"), words(language, "yellow banana"), language.vocabulary.comma
    name, other = [(red,), (mug,)], [(token,) for token in banana]
    for question in ("find the red mug and the yellow banana", "red mug, yellow banana", "the red mug, and yellow banana"):
        ids = words(language, question)
        assert draft(ids, red, GROUP, language.vocabulary) == [*name, GROUP, (comma,), *other, GROUP]
        assert draft(ids, banana[0], GROUP, language.vocabulary) == [*other, GROUP]
    assert draft(words(language, "the red mug and"), red, GROUP, language.vocabulary) == [*name, GROUP]
    assert draft(words(language, "all mugs"), red, GROUP, language.vocabulary) == []


@pytest.mark.parametrize("question, text, read, one_by_one", [
    ("the red mug", "red mug", [6], [1, 1, 4]),
    # The answer spells "banana" with two tokens, the question with one: from there on it goes piece by piece.
    ("the red mug and the yellow banana", "red mug, yellow banana", [13, 1, 1, 4], [1, 1, 4, 1, 1, 1, 1, 4]),
])  # fmt: skip
def test_what_was_guessed_right_is_read_in_one_step(language, prefix, monkeypatch, question, text, read, one_by_one):
    answer, events, steps = run(language, prefix, question)
    assert steps == read
    monkeypatch.setattr(drafting, "draft", lambda *_: [])
    plain, others, alone = run(language, prefix, question)
    assert alone == one_by_one
    assert answer.stream.text == plain.stream.text == text and answer.tokens == plain.tokens
    assert answer.finish_reason == plain.finish_reason == "stop"
    for a, b in zip(events, others, strict=True):
        if isinstance(a, Group):
            assert (a.label, a.quantity, a.span) == (b.label, b.quantity, b.span)
            assert np.allclose(a.states, b.states, atol=0.05)
        else:
            assert a == b


@pytest.mark.parametrize("question", ["all red mug", "the red banana and the mug", "red mug red mug", "mugs forever and the red"])
def test_a_wrong_draft_changes_nothing(language, prefix, monkeypatch, question):
    answer, events, steps = run(language, prefix, question, 30)
    monkeypatch.setattr(drafting, "draft", lambda *_: [])
    plain, others, alone = run(language, prefix, question, 30)
    assert (answer.stream.text, answer.tokens, answer.finish_reason) == (plain.stream.text, plain.tokens, plain.finish_reason)
    assert [getattr(e, "span", e) for e in events] == [getattr(e, "span", e) for e in others]
    assert steps[0] > 1 and len(steps) <= len(alone)


@pytest.mark.parametrize("room", [1, 5, 6, 8, 9, 12, 13, 30])
def test_no_more_is_read_than_there_is_room(language, prefix, room):
    book = language._runs[language._tokens.segments[0]]
    ids = words(language, "the red mug and the yellow banana")
    ahead = Ahead(language.decoder, language.vocabulary, ids, book)
    step = ahead.read((ids[1],), prefix, room)
    # "red", "mug", a group, a comma, "yellow", "banana", a group.
    assert language.decoder.steps == [{5: 2, 6: 6, 8: 8, 9: 9, 12: 9, 13: 13, 30: 13}.get(room, 1)]
    assert step.past.lengths == (prefix.lengths[0] + 1,) and len(step.logits) == 1 and len(step.states[0]) == 1

import dataclasses
import threading

import numpy as np
import pytest

from pixel_perception.errors import PerceptionError
from pixel_perception.runtime.language import Answer, Group, Language
from pixel_perception.runtime.onnxruntime import OnnxRuntime


@pytest.fixture(scope="module")
def backend():
    return OnnxRuntime(threads=1)


@pytest.fixture(scope="module")
def language(tiny, backend):
    return Language(tiny, backend)


@pytest.fixture(scope="module")
def decoder(tiny, backend):
    return backend.decoder(tiny.graph("language_model"))


@pytest.fixture(scope="module")
def prefix(language):
    rng = np.random.default_rng(0)
    return language.prefix(rng.normal(0, 0.3, (6, 64)).astype(np.float32))


def _run(language, prefix, question, most=96, cancel=None, region=None):
    answer = Answer()
    return answer, list(language.answer(prefix, question, region, most, answer, cancel))


def _embeddings(language, tokens):
    return language.vocabulary.embed(tokens)[None]


def test_cached_steps_equal_one_reading(language, decoder):
    ids = language.vocabulary.question("find the mug and the banana")
    whole = decoder.read(_embeddings(language, ids), None)
    past, states = None, []
    for token in ids:
        step = decoder.read(_embeddings(language, [token]), past)
        past = step.past
        states.append(step.states[0, 0])
    assert past.length == len(ids)
    assert np.allclose(np.stack(states), whole.states[0], atol=0.05)
    assert np.allclose(step.logits, whole.logits, atol=0.1)


def test_codebook_run_in_one_step_equals_token_by_token(tiny, language, decoder, prefix):
    tokens = tiny.manifest.tokens
    question = _embeddings(language, [tokens.begin, *language.vocabulary.question("the mug"), tokens.newline])
    start = decoder.read(question, prefix)
    together = decoder.read(_embeddings(language, tokens.segments), start.past)
    past, states = start.past, []
    for token in tokens.segments:
        step = decoder.read(_embeddings(language, [token]), past)
        past = step.past
        states.append(step.states[0, 0])
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(states, together.states[0], strict=True)]
    assert min(cosines) > 0.999
    assert step.logits.argmax() == together.logits.argmax()


def test_a_past_is_shared_and_never_changed(language, decoder, prefix):
    first = _run(language, prefix, "the mug and the banana")
    other = _run(language, prefix, "all mugs")
    again = _run(language, prefix, "the mug and the banana")
    assert first[0].stream.text == again[0].stream.text != other[0].stream.text
    for a, b in zip(first[1], again[1], strict=True):
        assert a == b if isinstance(a, str) else np.array_equal(a.states, b.states)
    assert prefix.length == 7


def test_groups_have_labels_quantities_and_spans(language, prefix):
    answer, events = _run(language, prefix, "the mug and the banana")
    groups = [e for e in events if isinstance(e, Group)]
    assert [(g.label, g.quantity, g.span) for g in groups] == [("red mug", "one", (0, 7)), ("yellow banana", "one", (9, 22))]
    assert all(g.states.shape == (4, 64) for g in groups)
    assert "".join(e for e in events if isinstance(e, str)) == answer.stream.text == "red mug, yellow banana"
    assert len(answer.states) == len(answer.tokens) and answer.tokens[-1][1] == 22


def test_states_of_a_group_are_those_at_its_segments(tiny, language, decoder, prefix):
    tokens = tiny.manifest.tokens
    answer, events = _run(language, prefix, "all mugs")
    groups = [e for e in events if isinstance(e, Group)]
    assert [g.quantity for g in groups] == ["all"]
    # Read again by hand: question, the words, then ALL and the segments.
    words = language.vocabulary.question("all mugs")
    asked = decoder.read(_embeddings(language, [tokens.begin, *words, tokens.newline]), prefix)
    past = asked.past
    for _ in answer.tokens:
        token = int(asked.logits.argmax())
        asked = decoder.read(_embeddings(language, [token]), past)
        past = asked.past
    states = decoder.read(_embeddings(language, [tokens.all, *tokens.segments]), past).states[0]
    assert np.array_equal(groups[0].states, states[1:])


@pytest.mark.parametrize("most", range(1, 20))
def test_a_budget_never_cuts_a_group(language, prefix, most):
    whole, _ = _run(language, prefix, "the mug and the banana")
    answer, events = _run(language, prefix, "the mug and the banana", most)
    groups = sum(isinstance(e, Group) for e in events)
    assert len(answer.tokens) + 4 * groups <= most
    assert whole.stream.text.startswith(answer.stream.text)
    # "red mug" and "yellow banana" are two and three tokens, the comma is one, a group is four.
    assert groups == (most >= 6) + (most >= 14)
    assert answer.finish_reason == ("stop" if most >= 14 else "length")


def test_context_ends_an_answer_without_end(tiny, backend, prefix):
    short = dataclasses.replace(tiny, manifest=dataclasses.replace(tiny.manifest, context=40))
    language = Language(short, backend)
    answer, events = _run(language, prefix, "mugs forever", 10_000)
    assert answer.finish_reason == "context"
    fed = len(answer.tokens) + 5 * sum(isinstance(e, Group) for e in events)
    asked = 2 + len(language.vocabulary.question("mugs forever"))
    assert 40 - 5 < prefix.length + asked + fed <= 40


def test_a_question_longer_than_the_context(tiny, backend, prefix):
    short = dataclasses.replace(tiny, manifest=dataclasses.replace(tiny.manifest, context=40))
    with pytest.raises(PerceptionError, match="^INVALID_QUERY: text: expected at most 28 tokens, found 34"):
        _run(Language(short, backend), prefix, "x" * 31)


def test_cancel_is_seen_before_every_token(language, prefix):
    cancel = threading.Event()
    answer, events = Answer(), []
    for event in language.answer(prefix, "mugs forever", None, 96, answer, cancel):
        events.append(event)
        if len(events) == 4:
            cancel.set()
    assert answer.finish_reason == "cancelled" and len(events) == 4
    cancel.set()
    answer, events = _run(language, prefix, "the mug", cancel=cancel)
    assert (answer.finish_reason, events) == ("cancelled", [])


def test_captions_in_a_batch_equal_captions_alone(language, prefix):
    regions = np.random.default_rng(1).normal(0, 0.3, (5, 3, 64)).astype(np.float32)
    together = language.captions(prefix, "describe", regions, 20)
    for answer, region in zip(together, regions, strict=True):
        alone = Answer()
        list(language.answer(prefix, "describe", region, 20, alone, probabilities=True))
        assert (answer.stream.text, answer.finish_reason, answer.tokens) == (alone.stream.text, "stop", alone.tokens)
        assert np.allclose(answer.states, alone.states, atol=0.05)
        assert answer.confidence == pytest.approx(alone.confidence, abs=0.01) and 0 < answer.confidence <= 1


def test_captions_that_end_at_different_lengths(language, prefix):
    """Rows of the batch that have ended are padding: they change neither themselves nor the others."""
    regions = np.zeros((3, 3, 64), np.float32)
    # The third region's tokens raise the banana's flag: its caption is one token longer.
    regions[2] = language.vocabulary.embed(language.vocabulary.question("banana")[-1:])
    answers = language.captions(prefix, "describe", regions, 20)
    alone = [Answer() for _ in regions]
    for answer, region in zip(alone, regions, strict=True):
        list(language.answer(prefix, "describe", region, 20, answer))
    assert [a.stream.text for a in answers] == [a.stream.text for a in alone]
    assert len({len(a.tokens) for a in answers}) == 2


def test_captions_obey_budget_and_cancel(language, prefix):
    regions = np.zeros((3, 3, 64), np.float32)
    answers = language.captions(prefix, "describe", regions, 1)
    assert [(a.stream.text, a.finish_reason) for a in answers] == [("red", "length")] * 3
    cancel = threading.Event()
    cancel.set()
    answers = language.captions(prefix, "describe", regions, 20, cancel)
    assert [(a.stream.text, a.finish_reason) for a in answers] == [("", "cancelled")] * 3


def test_several_rows_read_one_position_at_a_time(decoder, prefix):
    both = decoder.stack([prefix, prefix])
    assert (both.rows, both.length) == (2, prefix.length)
    with pytest.raises(ValueError, match="of one position"):
        decoder.read(np.zeros((2, 3, 64), np.float32), both)
    with pytest.raises(ValueError, match="one length"):
        decoder.stack([prefix, decoder.read(np.zeros((1, 1, 64), np.float32), prefix).past])

import dataclasses
import threading

import numpy as np
import pytest

from pixel_perception.errors import PerceptionError
from pixel_perception.runtime.compact import CompactLanguage
from pixel_perception.runtime.language import Answer, Group, Prompt
from pixel_perception.runtime.onnxruntime import OnnxRuntime


@pytest.fixture(scope="module")
def backend():
    return OnnxRuntime(threads=1)


@pytest.fixture(scope="module")
def language(tiny, backend):
    return CompactLanguage(tiny, backend)


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
        states.append(step.states[0][0])
    assert past.lengths == (len(ids),)
    assert np.allclose(np.stack(states), whole.states[0], atol=0.05)
    assert np.allclose(step.logits[0], whole.logits[0], atol=0.1)


def test_codebook_run_in_one_step_equals_token_by_token(tiny, language, decoder, prefix):
    tokens = tiny.manifest.tokens
    question = _embeddings(language, [tokens.begin, *language.vocabulary.question("the mug"), tokens.newline])
    start = decoder.read(question, prefix)
    together = decoder.read(_embeddings(language, tokens.segments), start.past)
    past, states = start.past, []
    for token in tokens.segments:
        step = decoder.read(_embeddings(language, [token]), past)
        past = step.past
        states.append(step.states[0][0])
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(states, together.states[0], strict=True)]
    assert min(cosines) > 0.999
    assert step.logits[0].argmax() == together.logits[0].argmax()


def test_a_past_is_shared_and_never_changed(language, decoder, prefix):
    first = _run(language, prefix, "the mug and the banana")
    other = _run(language, prefix, "all mugs")
    again = _run(language, prefix, "the mug and the banana")
    assert first[0].stream.text == again[0].stream.text != other[0].stream.text
    for a, b in zip(first[1], again[1], strict=True):
        assert a == b if isinstance(a, str) else np.array_equal(a.states, b.states)
    assert prefix.lengths == (7,)


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
        token = int(asked.logits[0].argmax())
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
    language = CompactLanguage(short, backend)
    answer, events = _run(language, prefix, "mugs forever", 10_000)
    assert answer.finish_reason == "context"
    fed = len(answer.tokens) + 5 * sum(isinstance(e, Group) for e in events)
    asked = 2 + len(language.vocabulary.question("mugs forever"))
    assert 40 - 5 < prefix.lengths[0] + asked + fed <= 40


def test_a_question_longer_than_the_context(tiny, backend, prefix):
    short = dataclasses.replace(tiny, manifest=dataclasses.replace(tiny.manifest, context=40))
    with pytest.raises(PerceptionError, match="^INVALID_QUERY: text: expected at most 28 tokens, found 34"):
        _run(CompactLanguage(short, backend), prefix, "x" * 31)


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


def _together(language, prefix, prompts, cancel=None):
    answers = [Answer() for _ in prompts]
    return answers, list(language.converse(prefix, prompts, answers, cancel))


@pytest.mark.parametrize("count", [2, 5])
def test_captions_in_a_batch_equal_captions_alone(language, prefix, count):
    regions = np.random.default_rng(1).normal(0, 0.3, (count, 3, 64)).astype(np.float32)
    together, _ = _together(language, prefix, [Prompt("describe", region, 20) for region in regions])
    for answer, region in zip(together, regions, strict=True):
        alone, _ = _run(language, prefix, "describe", 20, region=region)
        assert (answer.stream.text, answer.finish_reason, answer.tokens) == (alone.stream.text, "stop", alone.tokens)
        assert np.allclose(answer.states, alone.states, atol=0.05)
        assert answer.confidence == pytest.approx(alone.confidence, abs=0.01) and 0 < answer.confidence <= 1


def test_captions_that_end_at_different_lengths(language, prefix):
    regions = np.zeros((3, 3, 64), np.float32)
    # The third region's tokens raise the banana's flag: its caption is one token longer.
    regions[2] = language.vocabulary.embed(language.vocabulary.question("banana")[-1:])
    answers, _ = _together(language, prefix, [Prompt("describe", region, 20) for region in regions])
    alone = [_run(language, prefix, "describe", 20, region=region)[0] for region in regions]
    assert [a.stream.text for a in answers] == [a.stream.text for a in alone]
    assert len({len(a.tokens) for a in answers}) == 2


def test_instructions_in_a_batch_equal_instructions_alone(language, prefix):
    """Rows whose questions, answers and codebook runs have different lengths, in the same steps."""
    questions = ["the mug and the banana", "all mugs", "find the banana", "describe the scene", "mugs forever"]
    answers, events = _together(language, prefix, [Prompt(question, None, 30) for question in questions])
    for i, question in enumerate(questions):
        alone, own = _run(language, prefix, question, 30)
        mine = [event for row, event in events if row == i]
        assert (answers[i].stream.text, answers[i].finish_reason) == (alone.stream.text, alone.finish_reason)
        assert "".join(e for e in mine if isinstance(e, str)) == alone.stream.text
        groups, wanted = ([e for e in some if isinstance(e, Group)] for some in (mine, own))
        assert [(g.label, g.quantity, g.span) for g in groups] == [(g.label, g.quantity, g.span) for g in wanted]
        for group, other in zip(groups, wanted, strict=True):
            assert np.allclose(group.states, other.states, atol=0.05)
    assert {a.finish_reason for a in answers} == {"stop", "length"}


def test_a_batch_obeys_budgets_and_cancel(language, prefix):
    region = np.zeros((3, 64), np.float32)
    answers, _ = _together(language, prefix, [Prompt("describe", region, 1), Prompt("describe", region, 20)])
    assert [(a.stream.text, a.finish_reason) for a in answers] == [("red", "length"), ("red mug", "stop")]
    cancel = threading.Event()
    cancel.set()
    answers, events = _together(language, prefix, [Prompt("describe", region, 20)] * 3, cancel)
    assert [(a.stream.text, a.finish_reason) for a in answers] == [("", "cancelled")] * 3 and not events


def test_a_memory_grows_without_changing_what_was_read(language, decoder):
    """Answers longer than a conversation's first memory, continued from a past that another one wrote behind."""
    rng = np.random.default_rng(2)
    start = decoder.read(rng.normal(0, 0.3, (1, 5, 64)).astype(np.float32), None).past
    pieces = rng.normal(0, 0.3, (5, 150, 64)).astype(np.float32)
    runs = []
    for _ in range(2):
        step = decoder.read(rng.normal(0, 0.3, (1, 9, 64)).astype(np.float32), start)  # somebody else's continuation
        past = start
        for piece in pieces:
            step = decoder.read([piece], past)
            past = step.past
        runs.append(step)
    assert past.lengths == (755,) and past.memory.capacity >= 755
    assert np.array_equal(runs[0].states[0], runs[1].states[0])


def test_parts_must_fit_the_rows(decoder, prefix):
    three, none = np.zeros((3, 64), np.float32), np.zeros((0, 64), np.float32)
    both = decoder.read([three, three[:1]], prefix)
    assert both.past.lengths == (10, 8) and [len(s) for s in both.states] == [3, 1]
    one = decoder.read([none, three], both.past)
    assert one.past.lengths == (10, 11) and one.logits[0].size == 0 < one.logits[1].size
    with pytest.raises(ValueError, match="expected one for each of 2 rows"):
        decoder.read([three], both.past)
    with pytest.raises(ValueError, match="not all empty"):
        decoder.read([none, none], both.past)


def test_positions_may_be_left_out_behind_a_past(decoder):
    """A gap in what was read: whatever follows counts on from the last position, also behind a shortened past."""
    x = np.random.default_rng(3).normal(0, 0.3, (1, 9, 64)).astype(np.float32)
    start = decoder.read(x[:, :3], None).past
    gap = decoder.read(x[:, 3:5], start, positions=[4, 7]).past
    assert gap.lengths == (8,) and gap.seen.shape == (1, 5)
    whole = decoder.read(x[:, 5:], gap)
    again = decoder.read(x[:, 7:], whole.past.first(10))
    assert whole.past.lengths == (12,) and np.allclose(whole.states[0][2:], again.states[0], atol=0.02)
    with pytest.raises(ValueError, match="positions: expected a single part behind a past"):
        decoder.read(x, None, positions=range(9))

"""PixelLM served from its bundle, beside torch: ids, targets, masks; batches, cancel, following, and what it refuses."""

import re
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from pixellm_on_the_spot import lessons, paint

from pixel_perception import masks
from pixel_perception.bundle import Bundle
from pixel_perception.errors import PerceptionError
from pixel_perception.geometry import Letterbox
from pixel_perception.models.pixellm.generation import generate
from pixel_perception.models.pixellm.images import prepare, unpad
from pixel_perception.models.pixellm.model import IMAGE_SLOT
from pixel_perception.perception import Perception
from pixel_perception.types import Query, Task

PICTURE = paint("red", "blue")
BOTH = Query("the red box and the blue box", Task.SEGMENT)


@pytest.fixture(scope="module")
def perception(pixellm):
    return Perception.open(pixellm.bundle.folder, threads=1)


@torch.no_grad()
def torch_answers(pixellm, image, question, limit=96):
    """The answer and its mask logits (T, 32, 32)."""
    frame, fitted = prepare(image, pixellm.model.config.vision.side)
    features = pixellm.model.encode(frame[None], [fitted])
    answer = generate(pixellm.model, features, pixellm.text.prompt(question), limit=limit)
    logits = pixellm.model.decoder(answer.fused, features.maps).combined if len(answer.fused) else torch.zeros(0, 32, 32)
    return answer, logits.numpy()


def same_mask(mask, logits, size):
    """A random network's masks are fine-grained: hardly a pixel may differ from those of torch's logits."""
    wanted = masks.from_logits(logits, Letterbox(*size, 64, 64))
    return (mask.full(*size) ^ wanted.full(*size)).mean() < 1e-3


def test_answers_are_those_of_torch(pixellm, perception):
    targets = 0
    for image, question, _ in [*list(lessons())[:6], (paint("red", "green")[:40, :56], "what is the red box?", "")]:
        answer, logits = torch_answers(pixellm, image, question)
        query = Query(question, max_new_tokens=96)
        result = perception.ask(image, replace(query, text=question.removesuffix(" Please output segmentation mask.")))
        if question.startswith("What"):  # ANSWER asks sentences in this very way
            said = pixellm.text.decode(answer.ids)
            assert result.text == re.sub(r" ?\{seg\}", "", said).strip()
            assert len(result.targets) == len(answer.fused) and result.finish_reason == "stop"
            targets += len(answer.fused)
            if len(answer.fused):
                np.testing.assert_allclose(result.standing.queries, answer.fused, atol=1e-4)
                ours, presence = perception.vision.decode(perception.encode(image), result.standing.queries)
                np.testing.assert_allclose(ours, logits, atol=1e-4)
                assert presence is None
            assert [i.target for i in result.instances] == list(range(len(logits)))
            assert all(same_mask(i.mask, logits[i.target], result.image_size) for i in result.instances)
    assert targets >= 6


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (50, 37), (1280, 720), (300, 300)])
def test_masks_lie_where_the_published_code_puts_them(size):
    """It enlarges in two steps, to the frame and to the image; one step differs by less than a cell at a border."""
    y, x = np.mgrid[:32, :32]
    logits = (6 - np.hypot(x - 13.3, y - 9.1)).astype(np.float32)
    letterbox = Letterbox(*size, 64, 64)
    theirs = unpad(torch.from_numpy(logits)[None], letterbox.valid[::-1], size[::-1])[0].numpy() > 0
    ours = masks.from_logits(logits, letterbox).full(*size)
    assert (ours & theirs).sum() / (ours | theirs).sum() > 0.98


def test_prompts_have_the_ids_of_published_rows(pixellm, perception):
    language, templates, (opening, closing) = perception.language, pixellm.bundle.manifest.templates, pixellm.text.marks
    for question in ("Where is the mug?", "  two  spaces, a line\nbreak ", "é, 猫 and {} braces", "USER: </x> ASSISTANT:"):
        ids = [1, *language.vocabulary.ids(templates.system), opening, IMAGE_SLOT, closing, *language._question(question)]
        assert ids == pixellm.text.prompt(question)
    typed = language._question("segment [SEG0] <im_end> </s>")
    assert not {*pixellm.bundle.manifest.tokens.segments, opening, closing, 2} & set(typed)  # a user's text is mere text


def test_words_without_a_task_are_closed_before_the_request_for_masks(pixellm, perception):
    for said, asked in (("the red box", "the red box."), (" the red box! ", "the red box!")):
        answer, _ = torch_answers(pixellm, PICTURE, f"{asked} Please output segmentation mask.", 20)
        result = perception.ask(PICTURE, Query(said, max_new_tokens=20))
        assert result.text == re.sub(r" ?\{seg\}", "", pixellm.text.decode(answer.ids)).strip() and len(result.targets) == len(answer.fused)


def test_targets_have_names_scores_and_whole_masks(perception):
    pieces = []
    result = perception.ask(PICTURE, BOTH, pieces.append)
    assert result.text == "the red box is and the blue box." == "".join(p.text for p in pieces if p.kind == "text")
    assert [(t.label, t.quantity) for t in result.targets] == [("the red box", "one"), ("the blue box", "one")]
    assert all(result.text.encode()[slice(*t.span)].decode() == t.label and 0 < t.score < 1 for t in result.targets)
    assert [p.instance.target for p in pieces if p.kind == "instance"] == [i.target for i in result.instances]
    assert result.words == () and result.regions == () and result.timings.first_mask > 0
    strict = perception.ask(PICTURE, replace(BOTH, score_threshold=1.0))
    assert not strict.instances and [t.score for t in strict.targets] == [t.score for t in result.targets]


def test_a_batch_answers_as_one_by_one(perception):
    queries = [BOTH, Query("the red box", Task.REFER), Query("what is the red box in this image?"), Query("", Task.NARRATE),
               *(Query("the red box", Task.SEGMENT) for _ in range(3))]  # fmt: skip
    encoded = perception.encode(PICTURE)
    for query, together in zip(queries, perception.ask_all(encoded, queries), strict=True):
        alone = perception.ask(encoded, query)
        assert (together.text, together.finish_reason, together.targets) == (
            alone.text, alone.finish_reason, tuple(replace(t, score=pytest.approx(t.score, abs=1e-3)) for t in alone.targets))
    same = perception.ask_all(encoded, queries[-3:] * 2)  # read once, answered six times
    assert {r.text for r in same} == {perception.ask(encoded, queries[-1]).text}


@pytest.mark.parametrize("most", [1, 4, 9, 10, 11])
def test_a_budget_never_cuts_a_run(pixellm, perception, most):
    question = pixellm.bundle.manifest.templates.segment.replace("{}", BOTH.text)
    answer, _ = torch_answers(pixellm, PICTURE, question, most)
    result = perception.ask(PICTURE, replace(BOTH, max_new_tokens=most))
    assert len(result.targets) == len(answer.fused) and result.finish_reason == "length"
    assert result.text == re.sub(r" ?\{seg\}", "", pixellm.text.decode(answer.ids))


def test_cancel_ends_an_answer_with_what_there_is(perception):
    cancel = threading.Event()
    result = perception.ask(PICTURE, BOTH, lambda piece: piece.kind == "instance" and cancel.set(), cancel)
    assert result.finish_reason == "cancelled" and len(result.targets) == 1 and result.standing is not None


def test_follows_in_another_frame(pixellm, perception):
    first, other = perception.ask(PICTURE, BOTH), paint("green", "red")
    assert [i.track_id for i in first.instances] == [1, 2]
    result = perception.follow(other, first.standing)
    frame, fitted = prepare(other, 64)
    with torch.no_grad():
        features = pixellm.model.encode(frame[None], [fitted])
        logits = pixellm.model.decoder(torch.from_numpy(first.standing.queries), features.maps).combined.numpy()
    assert [t.score for t in result.targets] == [t.score for t in first.targets] and result.finish_reason == "followed"
    assert all(same_mask(i.mask, logits[i.target], result.image_size) for i in result.instances)
    assert {i.track_id for i in result.instances} == {1, 2}


@pytest.mark.parametrize("query", [Query("", Task.CAPTION_DENSE), Query(boxes=((1, 1, 9, 9),)), Query(points=((5, 5),))])
def test_tasks_that_the_model_lacks(perception, query):
    with pytest.raises(PerceptionError, match=r"task: expected one of pixellm-tiny's \(SEGMENT, REFER, NARRATE, ANSWER\), found CAPTION_"):
        perception.ask(PICTURE, query)


def test_a_question_longer_than_the_context(perception):
    with pytest.raises(PerceptionError, match="text: expected at most .* tokens, found .*; use fewer words"):
        perception.ask(PICTURE, Query("q" * 400))


def test_weights_stay_on_disk_until_they_are_read(perception):
    assert isinstance(perception.language.vocabulary.embeddings, np.memmap)


def test_an_unknown_family_is_refused(pixellm):
    bundle = replace(pixellm.bundle, manifest=replace(pixellm.bundle.manifest, family="pixelm"))
    with pytest.raises(PerceptionError, match="manifest.json: family: expected one of compact, pixellm.*, found 'pixelm'"):
        Bundle.check(bundle)

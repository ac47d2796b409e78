"""PixelLLM's behaviour on tiny random networks: decoding, prompts, places, masks, boxes, losses."""

from dataclasses import replace

import pytest
import torch

from pixel_perception.models.pixelllm import decoding, objective
from pixel_perception.models.pixelllm.boxes import clip_boxes, decode_boxes, encode_boxes, nms, pairwise_iou, roi_align
from pixel_perception.models.pixelllm.config import PixelLLMConfig
from pixel_perception.models.pixelllm.location_head import before_end, boxes_at, points_to_pixels, words
from pixel_perception.models.pixelllm.model import PixelLLM
from pixel_perception.models.pixelllm.proposal_losses import centre_targets, giou_loss, heat_loss, match, sample
from pixel_perception.models.pixelllm.stages import prepare

LANGUAGES = ["t5", "text_decoder"]


@pytest.fixture(scope="module", params=LANGUAGES)
def model(request):
    torch.manual_seed(0)
    model = PixelLLM(PixelLLMConfig.tiny(request.param, detector=request.param == "t5")).eval()
    with torch.no_grad():
        for name, x in model.named_parameters():  # let LoRA and the small decoder's tables have a say
            if "lora_up" in name or "embedding" in name or "position.weight" in name:
                x.normal_(std=0.5)
    return model


@pytest.fixture(scope="module")
def seen(model):
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        images = 255 * torch.rand(2, 3, 112, 112, generator=generator)
        features = model.encode(images, torch.tensor([[112.0, 80.0], [64.0, 112.0]]))
        boxes = torch.tensor([[[0.0, 0, 112, 80], [5, 5, 40, 60]], [[0.0, 0, 64, 112], [20, 30, 64, 90]]])
        return images, features, model.extract(features, boxes)


CONTEXT = torch.tensor([[[5, 9, 1, 0], [7, 1, 0, 0]], [[5, 6, 7, 1], [8, 1, 0, 0]]])


@torch.no_grad()
def test_cached_decode_equals_uncached(model, seen):
    memory = model.memory(seen[2], CONTEXT)
    tokens = torch.randint(2, 96, (4, 9), generator=torch.Generator().manual_seed(2))
    whole = torch.nn.functional.pad(tokens, (0, 1), value=1)  # the last state of T5 is padding when teacher-forced
    logits, states = model.language(whole, memory)
    past, single = None, []
    for i in range(9):
        a, b, past = model.language.step(tokens[:, i : i + 1], memory, past)
        single.append((a, b))
    assert torch.allclose(torch.cat([a for a, _ in single], 1), logits[:, :9], atol=2e-5)
    assert torch.allclose(torch.cat([b for _, b in single], 1), states[:, :9], atol=2e-5)
    first, _, past = model.language.step(tokens[:, :4], memory)
    rest, _, _ = model.language.step(tokens[:, 4:], memory, past)
    assert torch.allclose(torch.cat([first, rest], 1), logits[:, :9], atol=2e-5)


@torch.no_grad()
def test_greedy_equals_rereading_the_whole_text(model, seen):
    memory = model.memory(seen[2], CONTEXT)
    written, score = decoding.greedy(model.language, memory, 0, 1, 12)
    tokens = torch.full((4, 12), 1)
    tokens[:, 0] = 0
    total = torch.zeros(4)
    for i in range(1, 11):
        logits = model.language(tokens, memory)[0][:, i - 1]
        logits[torch.arange(4), tokens[:, i - 1]] = -1e4
        best, choice = logits.log_softmax(-1).max(-1)
        done = tokens[:, i - 1] == 1
        tokens[:, i] = torch.where(done, 1, choice)
        total += torch.where(done, 0.0, best)
    assert torch.equal(written, tokens)
    assert torch.allclose(score, total / ((tokens != 1).sum(1) - 1), atol=1e-4)
    assert not (written[:, 1:] == written[:, :-1])[written[:, 1:] != 1].any()  # no word twice in a row


@torch.no_grad()
def test_beam_scores_are_log_probabilities_of_its_texts(model, seen):
    memory = model.memory(seen[2])
    texts, scores = decoding.beam(model.language, memory, 0, 1, 8, beams=3)
    assert texts.shape == (4, 3, 8) and (scores.diff(dim=1) >= 0).all()
    for b in range(3):
        logits = model.language(texts[:, b], memory)[0].log_softmax(-1)
        chosen = logits[:, :-1].gather(-1, texts[:, b, 1:, None])[..., 0]
        ends = (texts[:, b] == 1).int().argmax(1)
        for row in range(4):
            count = min(int(ends[row]), 6)  # the closing token of a text that never ended is not part of its score
            total = chosen[row, :count].sum()
            penalised = total / ((5 + count) / 6) ** 0.6
            assert min(abs(scores[row, b] - total), abs(scores[row, b] - penalised)) < 1e-3


@torch.no_grad()
def test_write_and_trace(model, seen):
    _, features, visual = seen
    for beams in (1, 2):
        tokens, scores = model.write(visual, CONTEXT, beams=beams)
        assert tokens.shape == (2, 2, 12) and scores.shape == (2, 2) and (scores <= 0).all()
    traced = model.trace(features, visual, tokens, CONTEXT)
    assert traced.points.shape == (2, 2, 12, 2, 2)
    assert torch.allclose(traced.points[1], traced.fractions[1] * torch.tensor([64.0, 112.0]), atol=1e-4)


@torch.no_grad()
def test_padding_is_not_seen(model, seen):
    images, features, _ = seen
    other = images.clone()
    other[0, :, 80:], other[1, :, :, 64:] = 200.0, 3.0
    again = model.encode(other, features.valid)
    assert torch.equal(features.joined, again.joined)
    assert torch.equal(model.whole_image(features), torch.tensor([[[0.0, 0, 112, 80]], [[0.0, 0, 64, 112]]]))
    assert torch.equal(model.encode(images).valid, torch.full((2, 2), 112))


@torch.no_grad()
def test_context_padding_is_not_seen(model, seen):
    tokens = torch.tensor([[[0, 7, 8, 1]]]).expand(2, 2, 4)
    longer = torch.nn.functional.pad(CONTEXT, (0, 3))
    a = model.read(seen[1], seen[2], tokens, CONTEXT).logits
    b = model.read(seen[1], seen[2], tokens, longer).logits
    assert torch.allclose(a[..., :3, :], b[..., :3, :], atol=2e-5)


@torch.no_grad()
def test_an_empty_box_is_prompted_by_points(model):
    boxes = torch.tensor([[[10.0, 20, 60, 50], [0.0, 0, 0, 0]]])
    tokens, encoder = model.prompt_tokens(boxes), model.prompt_encoder
    assert tokens.shape == (1, 2, 5, 256)
    assert torch.allclose(tokens[0, 0, :2], encoder.boxes(boxes[:, 0], (112, 112))[0], atol=1e-4)
    assert torch.equal(tokens[0, 0, 2:], encoder.no_mask.expand(3, -1))
    points = encoder.points(torch.zeros(1, 1, 2), torch.ones(1, 1), (112, 112))[0]
    assert torch.allclose(tokens[0, 1, :4], points.expand(4, -1), atol=1e-4)
    assert torch.equal(tokens[0, 1, 4], encoder.no_point)


@torch.no_grad()
def test_referred_box_and_mask(model, seen):
    _, features, visual = seen
    tokens = torch.tensor([[[0, 7, 8, 9, 1, 0], [0, 7, 1, 0, 0, 0]]]).expand(2, 2, 6)
    read = model.read(features, visual, tokens)
    boxes = model.boxes(read, tokens)
    points = read.points[:, 0, 3]  # the state that has read the last word and predicts the end
    assert torch.allclose(boxes[:, 0], torch.cat([points.amin(1), points.amax(1)], -1))
    masks, quality = model.masks(features, boxes, visual, read)
    assert masks.shape == (2, 2, 28, 28) and quality.shape == (2, 2)
    plain, _ = model.masks(features, boxes)
    assert torch.allclose(masks, plain, atol=1e-5)  # the adapter's gate starts at zero
    with torch.enable_grad():
        model.mask_adapter.gate.requires_grad_(True)
        assert model.masks(features, boxes, visual, read)[0].sum().requires_grad


def test_places_of_words():
    tokens = torch.tensor([[0, 5, 6, 1, 0, 0], [0, 1, 0, 0, 0, 0]])
    assert words(tokens, 0, 1).int().tolist() == [[0, 1, 1, 0, 0, 0], [0] * 6]
    assert before_end(tokens, 1).int().tolist() == [[0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
    points = torch.tensor([[[[3.0, 9.0], [1.0, 2.0]], [[4.0, 5.0], [6.0, 0.0]]]])
    assert boxes_at(points, torch.tensor([[True, True]])).tolist() == [[1, 0, 6, 9]]
    assert boxes_at(points, torch.tensor([[False, False]])).tolist() == [[0, 0, 0, 0]]
    scaled = points_to_pixels(torch.full((2, 1, 3, 2, 2), 0.5), torch.tensor([[40, 20], [10, 30]]))
    assert scaled[1, 0, 2, 0].tolist() == [5, 15]


def test_every_part_is_trained(model):
    torch.manual_seed(5)
    tokens = torch.tensor([[[0, 7, 8, 1, 0], [0, 9, 1, 0, 0]]]).expand(2, 2, 5)
    masks = torch.zeros(2, 2, 112, 112)
    masks[:, :, 20:60, 30:70] = 1
    boxes = torch.tensor([30.0, 20, 70, 60]).expand(2, 2, 4)
    batch = objective.Batch(255 * torch.rand(2, 3, 112, 112), torch.full((2, 2), 112.0), boxes, tokens,
                            torch.tensor([[True, False], [True, True]]), CONTEXT, boxes=boxes, masks=masks)
    losses = objective.forward(model, batch).losses
    assert {"text", "location", "mask", "mask_focal", "mask_dice", "mask_quality", "total"} == set(losses)
    expected = losses["text"] + 0.1 * losses["location"] + losses["mask"]
    assert torch.allclose(losses["total"], expected)
    if model.detector is not None:
        found = objective.forward(model, replace(batch, objects=True, masks=None)).losses
        assert {"heat", "sides", "objects", "boxes", "detection"} < set(found)
        losses["total"] = losses["total"] + found["total"]
    model.zero_grad()
    losses["total"].backward()
    idle = {name for name, x in model.named_parameters() if x.grad is None}
    assert {name for name in idle if not name.startswith(("prompt_encoder.", "mask_decoder.head.hypernetworks"))} == set()


def test_padding_rows_and_batches_without_targets_cost_nothing(model):
    tokens = torch.zeros(1, 1, 5, dtype=torch.int64)
    batch = objective.Batch(torch.rand(1, 3, 112, 112), torch.full((1, 2), 112.0), torch.zeros(1, 1, 4), tokens,
                            torch.zeros(1, 1, dtype=torch.bool), traces=torch.ones(1, 1, 5, 2, 2))
    with torch.no_grad():
        losses = objective.forward(model, batch).losses
    assert all(float(x) == 0 for x in losses.values())


def test_box_functions():
    a = torch.tensor([[0.0, 0, 10, 10], [5, 5, 15, 15], [0, 0, 0, 0]])
    assert torch.allclose(pairwise_iou(a, a[:2]), torch.tensor([[1, 25 / 175], [25 / 175, 1], [0, 0]]))
    changes = encode_boxes(a[:1], a[1:2], (10.0, 10.0, 5.0, 5.0))
    assert torch.allclose(decode_boxes(changes, a[1:2], (10.0, 10.0, 5.0, 5.0)), a[:1], atol=1e-5)
    assert clip_boxes(torch.tensor([[-3.0, 2, 50, 60]]), (20, 30)).tolist() == [[0, 2, 30, 20]]
    near = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [0, 0, 9, 10]])
    assert nms(near, 0.5).tolist() == [0, 2] and nms(near, 0.95).tolist() == [0, 1, 2, 3]
    ramp = torch.arange(8.0).expand(1, 8, 8)
    crop = roi_align(ramp, torch.tensor([[2.0, 1.0, 6.0, 7.0]]), 2)
    assert torch.allclose(crop[0, :, :, 0], torch.tensor([[2.5, 4.5], [2.5, 4.5]]))  # cell i has its centre at i + 0.5


def test_centre_targets_paint_one_peak_per_object():
    centres = torch.stack(torch.meshgrid(torch.arange(8) * 8 + 4, torch.arange(8) * 8 + 4, indexing="xy"), -1)
    centres = centres.reshape(-1, 2).float()
    strides, ranges = torch.full((64,), 8.0), torch.tensor([0.0, 40.0]).expand(64, 2)
    boxes = torch.tensor([[8.0, 8, 40, 24]])
    targets = centre_targets(boxes, centres, strides, ranges)
    peak = targets.heat.argmax()
    assert (targets.heat == 1).sum() == 1 and centres[peak].tolist() == [28, 20]
    assert targets.sides[peak].mul(8).tolist() == [20, 12, 12, 4] and targets.regress.sum() == 6
    assert not centre_targets(boxes * 8, centres, strides, ranges).regress.any()  # too large for this level
    assert not centre_targets(boxes[:0], centres, strides, ranges).heat.any()
    sides = targets.sides[targets.regress]
    assert torch.allclose(giou_loss(sides, sides), torch.zeros(6), atol=1e-5)
    assert giou_loss(torch.tensor([1.0, 1, 1, 1]), torch.tensor([2.0, 2, 2, 2])) == pytest.approx(0.75, abs=1e-4)
    good = torch.where(targets.heat == 1, 9.0, -9.0)[None]
    assert heat_loss(good, targets.heat[None]) < 0.01 < heat_loss(-good, targets.heat[None])


def test_matching_and_sampling():
    index, found = match(torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]]), torch.tensor([[0.0, 0, 10, 9]]), 0.6)
    assert index.tolist() == [0, 0] and found.tolist() == [True, False]
    assert not match(torch.zeros(3, 4), torch.zeros(0, 4), 0.6)[1].any()
    chosen = sample(torch.arange(100) < 50, 40, 0.25)
    assert len(chosen) == 40 and (chosen < 50).sum() == 10


@torch.no_grad()
def test_detector_finds_boxes_inside_the_image():
    torch.manual_seed(0)
    model = PixelLLM(PixelLLMConfig.tiny(detector=True)).eval()
    model.detector.head.heat.bias.fill_(2.0)
    found = model.detect(model.encode(255 * torch.rand(2, 3, 112, 112)))
    assert len(found) == 2
    for image in found:
        assert 0 < len(image.boxes) <= 5 and (image.scores.diff() <= 0).all() and (image.scores > 0.05).all()
        assert (image.boxes >= 0).all() and (image.boxes <= 112).all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="language must be"):
        PixelLLMConfig.tiny("gpt")
    model = PixelLLM(PixelLLMConfig.tiny("text_decoder"))
    with pytest.raises(ValueError, match="longer than the 64 positions"):
        model.language.embed(torch.zeros(1, 65, dtype=torch.int64))


@pytest.mark.parametrize("language", LANGUAGES)
def test_stages_train_what_they_should(language):
    model = PixelLLM(PixelLLMConfig.tiny(language, detector=True))
    parts = {stage: {name.split(".")[0] for name in prepare(model, stage)} for stage in ("trace", "segmentation", "dense_captioning")}
    shared = {"semantic", "prompt_features", "visual_projection", "language"}
    assert parts == {"trace": shared | {"location_head"}, "segmentation": {"location_head", "mask_adapter"},
                     "dense_captioning": shared | {"detector"}}
    learning = [name for name in prepare(model, "referring") if name.startswith("language.")]
    assert all(".lora_" in name for name in learning) == (language == "t5")
    assert [name for name, x in model.named_parameters() if x.requires_grad] == prepare(model, "referring")
    with pytest.raises(ValueError, match="stage must be one of"):
        prepare(model, "dreaming")
    with pytest.raises(ValueError, match="detector, which this model was built without"):
        prepare(PixelLLM(PixelLLMConfig.tiny(language)), "dense_captioning")


@torch.no_grad()
def test_several_texts_at_once_equal_one_by_one(model, seen):
    """Rows that end earlier, and contexts of other lengths, do not touch their neighbours."""
    memory, contexts = model.memory(seen[2], CONTEXT), CONTEXT.flatten(0, 1)
    visual = seen[2].projected.flatten(0, 1)
    end = int(decoding.greedy(model.language, memory, 0, 1, 10)[0][1, 3])  # so that a row ends before the others
    for write in (decoding.greedy, lambda *a: decoding.beam(*a, beams=3)):
        texts, scores = write(model.language, memory, 0, end, 10)
        for row, context in enumerate(contexts):
            alone = model.language.encode(visual[row : row + 1], context[context > 0][None])
            text, score = write(model.language, alone, 0, end, 10)
            assert torch.equal(text[0], texts[row]) and torch.allclose(score[0], scores[row], atol=1e-4)


def test_the_papers_variant_places_words_from_the_states_that_predict_them():
    released = PixelLLMConfig.tiny("t5")
    paper = released.as_in_paper()
    torch.manual_seed(0)
    model = PixelLLM(paper).eval()
    assert len(model.prompt_features.transformer.blocks) == 2
    assert {".attention." in name for name in model.state_dict() if "lora" in name} == {True}
    other = PixelLLM(replace(paper, location=released.location)).eval()
    other.load_state_dict(model.state_dict())
    tokens = torch.tensor([[[0, 7, 8, 9, 1, 0]]])
    with torch.no_grad():
        features = model.encode(torch.rand(1, 3, 112, 112) * 255)
        visual = model.extract(features, torch.tensor([[[10.0, 10, 60, 60]]]))
        shifted, plain = model.read(features, visual, tokens), other.read(features, visual, tokens)
    assert torch.equal(shifted.points[:, :, 1:], plain.points[:, :, :-1]) and torch.equal(shifted.states, plain.states)
    assert torch.equal(model.boxes(shifted, tokens), other.boxes(plain, tokens))  # the box is the predicting state's in both
    assert model.box_places(tokens).int().tolist() == [[[0, 0, 0, 0, 1, 0]]]

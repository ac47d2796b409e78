"""Samples become the tensors that the networks are trained on: rows and masks, and words, boxes and crops that stay together."""

import random
from dataclasses import replace

import numpy as np
import pytest
import shapes
import torch
from tokenizers_on_the_spot import tokenizer_for

from pixel_perception.models.configurations import configuration
from pixel_perception.models.losses import IGNORE
from pixel_perception.models.pixelllm.text import PixelLLMText
from pixel_perception.models.pixellm.text import PixelLMText
from pixel_perception.training import collate_pixelllm, collate_pixellm
from pixel_perception.training.collate_pixelllm import View
from pixel_perception.training.config import PixelLLM, PixelLM
from pixel_perception.training.tasks.mixture import Drawn
from pixel_perception.training.tasks.registry import open_task
from pixel_perception.training.tasks.sample import SLOT, Caption, Round, Sample, Source, TaskError
from pixel_perception.types import WordLocation

LM, LLM = configuration("pixellm-tiny"), configuration("pixelllm-tiny")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name in ("refcoco", "llava_instruct", "localized_narratives", "visual_genome"):
        getattr(shapes, name)(root / name, 3)
    return root


def drawn(home, name, index=0, seed=0):
    return Drawn(name, open_task(name, home / name)[index], random.Random(seed))


def test_rows_masks_and_padding_of_pixellm(home):
    text = PixelLMText(tokenizer_for(LM), LM)
    batch = collate_pixellm.Collate(PixelLM(questions=2, targets=2), LM, text)([drawn(home, "refcoco"), drawn(home, "llava_instruct", 1)])
    tensors = batch.tensors
    assert tensors.images.shape == (2, 3, 64, 64) and tensors.fitted == [(48, 64)] * 2 and tensors.sources == [(72, 96)] * 2
    assert [tuple(m.shape) for m in tensors.masks] == [(2, 72, 96), (0, 72, 96)]  # one target in each of two questions; a conversation
    assert tensors.image_of_row == [0, 0, 1] and len(batch.rows[2].rounds) == 2
    found = [len(LM.codebook.find(row)) for row in tensors.ids]
    assert found == [1, 1, 0] == [row.targets for row in batch.rows]
    assert ((tensors.ids != 0) == tensors.text_valid).all() and (tensors.labels[~tensors.text_valid] == IGNORE).all()
    for mask, row in zip(tensors.masks[0], batch.rows, strict=False):
        colour = row.rounds[0].targets[0].names[0].split()[1]
        assert np.abs(batch.images[0][mask.numpy()].mean(0) - shapes.COLOURS[colour]).max() < 25


def test_a_row_that_is_too_long_loses_its_last_targets_and_their_masks(home):
    sample = open_task("refcoco", home / "refcoco")[0]
    targets = (sample.targets * 8)[:16]
    sample = replace(sample, targets=(), rounds=(Round("Where?", " and ".join([SLOT] * 16), targets),))
    config = replace(LM, longest=LM.pooled**2 + 100)
    text = PixelLMText(tokenizer_for(config), config)
    batch = collate_pixellm.Collate(PixelLM(), config, text)([Drawn("x", sample, random.Random(0))])
    left = batch.rows[0].targets
    assert 0 < left < 16 and batch.tensors.masks[0].shape[0] == left == len(config.codebook.find(batch.tensors.ids[0]))


def collate(stage, texts=4, **options):
    lesson = PixelLLM(stage=stage, model="pixelllm-tiny", texts=texts, context=12, **options)
    return collate_pixelllm.Collate(lesson, LLM, PixelLLMText(tokenizer_for(LLM), LLM))


def test_traces_by_relative_position_follow_the_narrative(home):
    item = drawn(home, "localized_narratives")
    batch = collate("trace")([item]).tensors
    places, tokens = batch.traces[0, 0], batch.tokens[0, 0]
    assert tokens[0] == LLM.begin and (tokens == LLM.end).any() and not places[0].any()
    words = (tokens > 2).nonzero().flatten()
    first, last = places[words[0]].flatten().tolist(), places[words[-1]].flatten().tolist()
    scale = LLM.image_size / shapes.WIDTH
    boxes = [[v * scale for v in box] for box in item.sample.captions[0].utterances]
    assert first == pytest.approx(boxes[0], abs=0.6) and last == pytest.approx(boxes[-1], abs=0.6)


def test_traces_by_words_give_each_token_its_own_word_and_nothing_to_others():
    text = "a mug, then a cup"
    words = (WordLocation(2, 5, (0, 0, 10, 10)), WordLocation(14, 17, (20, 20, 40, 30)))
    maker = collate("trace", places="words")
    pieces = maker.text.pieces(text)
    found = maker._places(Caption(text, words=words), len(pieces))
    for (_, begin, end), box in zip(pieces, found, strict=True):
        inside = [w.box for w in words if w.begin <= begin and end <= w.end and end > begin]
        assert box == (inside[0] if inside else None)
    assert sum(box is not None for box in found) >= 2


def test_expressions_keep_box_and_mask_together_through_crop_and_mirror(home):
    maker = collate("segmentation", scale=(1.2, 1.6))
    seen = 0
    for seed in range(6):
        batch = maker([drawn(home, "refcoco", seed % 3, seed)])
        tensors = batch.tensors
        assert tensors.text is False and tensors.traces is None and tensors.masks.shape[-2:] == (112, 112)
        for p in tensors.real[0].nonzero().flatten().tolist():
            mask, box = tensors.masks[0, p], tensors.boxes[0, p]
            rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
            around = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            assert (around - box).abs().max() <= 2
            name = maker.text.decode(tensors.tokens[0, p].tolist())
            colour = next(c for c in shapes.COLOURS if c in name)
            assert np.abs(batch.images[0][mask.numpy()].mean(0) - shapes.COLOURS[colour]).max() < 40
            seen += 1
    assert seen >= 6


def test_objects_of_dense_captioning_and_rows_of_padding(home):
    other = drawn(home, "visual_genome")
    lonely = replace(other, sample=replace(other.sample, captions=other.sample.captions[:1]))
    tensors = collate("dense_captioning")([other, lonely]).tensors
    assert tensors.objects and tensors.text and tensors.real.tolist() == [[True, True], [True, False]]
    assert tensors.boxes[1, 1].tolist() == [0, 0, 0, 0] and tensors.tokens[1, 1, :2].tolist() == [LLM.begin, LLM.end]
    assert tensors.valid.tolist() == [[112, 84]] * 2 and not tensors.images[:, :, 84:].any()


def test_a_view_moves_pixels_and_boxes_alike():
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[10:20, 50:70] = 255
    for seed in range(12):
        view = View.draw(80, 40, 64, (0.5, 1.5), True, random.Random(seed))
        image, box = view.image(pixels), view.box((50, 10, 70, 20))
        assert image.shape[:2] == view.valid[::-1] and max(image.shape[:2]) <= 64
        bright = np.argwhere(image[..., 0] > 127)
        if box is None or not len(bright):
            continue
        (y0, x0), (y1, x1) = bright.min(0), bright.max(0) + 1
        assert np.abs(np.array([x0, y0, x1, y1]) - box).max() <= 1.5


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no image")
    sample = Sample(tmp_path / "a.jpg", (4, 4), Source("file", "1"))
    with pytest.raises(TaskError, match=r"a.jpg: expected an image"):
        collate_pixellm.read_image(sample)

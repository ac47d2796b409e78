"""PixelLM's behaviour on tiny random networks: generation, codebook, decoder, batches."""

import numpy as np
import pytest
import torch

from pixel_perception.models.pixellm.codebook import CodebookConfig, TokenFusion
from pixel_perception.models.pixellm.config import LossConfig, PixelLMConfig
from pixel_perception.models.pixellm.generation import generate, generate_batch
from pixel_perception.models.pixellm.images import fitted_size, prepare, unpad, valid_cells, valid_pixels
from pixel_perception.models.pixellm.model import IMAGE_SLOT, Batch, PixelLM

PROMPT = [1, 5, IMAGE_SLOT, 6, 7]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return PixelLM(PixelLMConfig.tiny()).eval()


@pytest.fixture(scope="module")
def features(model):
    with torch.no_grad():
        return model.encode(torch.randn(2, 3, 64, 64), [(64, 40), (48, 64)])


def speak(model, first):
    """Make the model choose a token next, whatever it sees: all other words are forbidden but the end."""
    bias = torch.full((model.config.language.vocabulary,), -1e4)
    bias[first] = 0
    return model.word_head.register_forward_hook(lambda module, inputs, output: output + bias)


def test_cached_equals_uncached(model, features):
    cached = generate(model, features, PROMPT, image=1, limit=12)
    plain = generate(model, features, PROMPT, image=1, limit=12, cached=False)
    assert cached.ids == plain.ids and len(cached.ids) == 12
    assert torch.allclose(cached.hidden, plain.hidden, atol=1e-5)


@pytest.mark.parametrize("cached", [True, False])
def test_run_in_one_step_equals_token_by_token(model, features, cached):
    run = model.config.codebook.ids
    forced = [9, *run, 10, *run, 2]
    at_once = generate(model, features, PROMPT, forced=forced, cached=cached)
    singly = generate(model, features, PROMPT, forced=forced, cached=cached, constrained=False)
    assert at_once.ids == singly.ids == forced and at_once.starts == singly.starts == [1, 8]
    assert torch.allclose(at_once.fused, singly.fused, atol=1e-5)
    assert torch.allclose(at_once.hidden, singly.hidden, atol=1e-5)
    assert singly.steps - at_once.steps == 2 * (len(run) - 1)


def test_generation_equals_teacher_forcing(model, features):
    forced = [9, *model.config.codebook.ids, 2]
    images, fitted = torch.randn(1, 3, 64, 64), [(64, 40)]
    ids = torch.tensor([PROMPT + forced])
    with torch.no_grad():
        taught = model(Batch(images, fitted, [(128, 80)], ids, torch.ones_like(ids), [0]))
        seen = model.encode(images, fitted)
    answer = generate(model, seen, PROMPT, forced=forced)
    assert torch.allclose(taught.fused, answer.fused, atol=1e-5)
    assert taught.masks[0].shape == (1, 128, 80)
    assert torch.allclose(taught.masks[0], model.masks(answer.fused, seen, [0], [(128, 80)])[0], atol=1e-4)


def test_codebook_tokens_only_come_as_whole_runs(model, features):
    book = model.config.codebook
    hook = speak(model, book.ids)
    try:
        answer = generate(model, features, PROMPT, limit=20)
        wild = generate(model, features, PROMPT, limit=20, constrained=False)
    finally:
        hook.remove()
    assert answer.ids == book.ids * 3  # a fourth run would pass the limit
    assert answer.starts == [0, 6, 12] and answer.fused.shape == (3, 2, 32)
    assert len(wild.ids) == 20


def test_stops_between_tokens_and_at_the_end(model, features):
    heard = []
    stopped = generate(model, features, PROMPT, limit=9, on_token=lambda token: heard.append(token) or len(heard) < 4)
    assert len(heard) == len(stopped.ids) == 4 and heard == stopped.ids
    hook = speak(model, model.config.language.end)
    try:
        assert generate(model, features, PROMPT).ids == [2]
    finally:
        hook.remove()


def test_codebook_is_an_id_run_and_passes_over_broken_groups():
    book = CodebookConfig(first=50, levels=2, tokens=2)
    assert book.ids == [50, 51, 52, 53] and book.contains(53) and not book.contains(54)
    ids = [50, 51, 52, 53, 1, 50, 51, 1, 50, 52, 51, 53, 50, 51, 52, 53]
    assert book.find(torch.tensor(ids)) == [12]  # the run at 0 has no state before it


def test_fusion_starts_as_the_published_constants():
    states = torch.randn(3, 6, 8)
    fused = TokenFusion(CodebookConfig(first=0))(states)
    assert torch.allclose(fused, states.view(3, 2, 3, 8).sum(2) / 6)


@pytest.mark.parametrize(("levels", "tokens"), [(1, 1), (1, 3), (3, 2)])
def test_any_number_of_scales_learns(levels, tokens):
    model = PixelLM(PixelLMConfig.tiny(levels, tokens))
    book = model.config.codebook
    ids = torch.tensor([[*PROMPT, *book.ids, 2, 0], [*PROMPT, *book.ids, 8, 2]])
    labels = torch.where(torch.arange(ids.shape[1]) < len(PROMPT), -100, ids)
    masks = [torch.ones(1, 30, 40), torch.zeros(1, 64, 64)]
    batch = Batch(torch.randn(2, 3, 64, 64), [(48, 64), (64, 64)], [(30, 40), (64, 64)], ids, ids != 0, [0, 1],
                  labels, masks)
    output = model(batch)
    output.losses["total"].backward()
    assert [tuple(x.shape) for x in output.masks] == [(1, 30, 40), (1, 64, 64)]
    assert model.fusion.weights.grad.abs().sum() > 0
    # one scale has weight one whatever its parameter says; several compete
    assert (model.decoder.scale_weights.grad.abs().sum() > 0) == (levels > 1)


def test_refinement_raises_the_loss_only_where_masks_of_one_question_overlap(model):
    book = model.config.codebook
    ids = torch.tensor([[*PROMPT, *book.ids, *book.ids, 2]])
    batch = Batch(torch.randn(1, 3, 64, 64), [(64, 64)], [(64, 64)], ids, torch.ones_like(ids), [0], ids,
                  [torch.zeros(2, 64, 64)])
    plain = PixelLM(PixelLMConfig.tiny()).eval()
    plain.load_state_dict(model.state_dict())
    plain.config = PixelLMConfig(**{**vars(model.config), "losses": LossConfig.released()})
    with torch.no_grad():
        refined, released = model(batch), plain(batch)
    overlap = (released.masks[0] > 0).all(0).any()
    assert (refined.losses["refined_bce"] > released.losses["refined_bce"]).item() == overlap.item()


def test_padding_does_not_change_the_answer(model):
    """Pixels and text that are marked as padding change nothing, where whole image tokens are padding."""
    images = torch.randn(1, 3, 64, 64)
    other = images.clone()
    other[..., 48:] = 7.0
    book = model.config.codebook
    ids = torch.tensor([[*PROMPT, *book.ids, 2]])
    longer = torch.nn.functional.pad(ids, (0, 3))
    with torch.no_grad():
        a = model(Batch(images, [(64, 48)], [(64, 48)], ids, torch.ones_like(ids), [0]))
        b = model(Batch(other, [(64, 48)], [(64, 48)], longer, longer != 0, [0]))
    assert torch.allclose(a.fused, b.fused, atol=1e-5)


def test_wrong_input_is_one_clear_error(model, features):
    with pytest.raises(ValueError, match="one image slot"):
        generate(model, features, [1, 2, 3])
    with pytest.raises(ValueError, match=r"frames \(3, 64, 64\)"):
        model.encode(torch.zeros(1, 3, 32, 32), [(32, 32)])
    with pytest.raises(ValueError, match="uint8"):
        prepare(np.zeros((4, 4, 3), np.float32))
    with pytest.raises(ValueError, match="must agree"):
        PixelLMConfig(codebook=CodebookConfig(first=0, levels=3))
    with pytest.raises(ValueError, match="outside"):
        PixelLMConfig(codebook=CodebookConfig(first=40000))
    ids = torch.tensor([[*PROMPT, *model.config.codebook.ids, 2]])
    with pytest.raises(ValueError, match="names masks"):
        model(Batch(torch.zeros(1, 3, 64, 64), [(64, 64)], [(8, 8)], ids, torch.ones_like(ids), [0], ids,
                    [torch.zeros(2, 8, 8)]))


def test_letterbox_and_back():
    assert fitted_size(120, 200, 448) == (269, 448) and fitted_size(97, 97, 448) == (448, 448)
    frame, fitted = prepare(np.full((1, 4000, 3), 255, np.uint8), 64)
    assert fitted == (1, 64) and frame[:, 1:].eq(0).all()
    pixels = valid_pixels([(2, 3), (4, 4)], 4)
    assert pixels.flatten(1).sum(1).tolist() == [6, 16]
    assert valid_cells(pixels, 2).tolist() == [[True, True, False, False], [True] * 4]
    back = unpad(torch.arange(4.0).view(1, 1, 4).expand(1, 4, 4), (4, 2), (8, 4))
    assert back.shape == (1, 8, 4) and back.max() <= 1


PROMPTS = [PROMPT, [1, 8, 9, 10, IMAGE_SLOT, 11], [IMAGE_SLOT, 3], [1, 5, 5, 5, 5, 5, IMAGE_SLOT, 4, 4, 4]]
IMAGES = [1, 0, 1, 1]


def same_answers(together, alone):
    for a, b in zip(together, alone, strict=True):
        assert a.ids == b.ids and a.starts == b.starts and a.steps == b.steps
        assert a.hidden.shape == b.hidden.shape and torch.allclose(a.hidden, b.hidden, atol=2e-5)
        assert torch.allclose(a.fused, b.fused, atol=2e-5)


@pytest.mark.parametrize("cached", [True, False])
def test_several_answers_at_once_equal_one_by_one(model, features, cached):
    run = model.config.codebook.ids
    forced = [[9, *run, 10, *run, 2], [*run, 2], [3, 4, 5, 6, 7], [8, 8, *run, *run, *run]]
    together = generate_batch(model, features, PROMPTS, IMAGES, forced=forced, cached=cached)
    same_answers(together, [generate(model, features, *row, forced=f) for *row, f in zip(PROMPTS, IMAGES, forced, strict=True)])
    assert [answer.starts for answer in together] == [[1, 8], [0], [], [2, 8, 14]]
    free = generate_batch(model, features, PROMPTS, IMAGES, limit=9, cached=cached)
    same_answers(free, [generate(model, features, *row, limit=9) for row in zip(PROMPTS, IMAGES, strict=True)])
    masks = model.masks(torch.cat([a.fused for a in together]), features, [1, 1, 0, 1, 1, 1], [(32, 32), (32, 32)])
    assert [len(x) for x in masks] == [1, 5]


def test_one_answer_of_several_can_be_stopped(model, features):
    heard = []
    answers = generate_batch(model, features, PROMPTS[:2], IMAGES[:2], limit=6, forced=[[3, 4, 5, 6], [7, 8, 9]],
                             on_token=lambda row, token: heard.append((row, token)) or row == 0 or token != 8)
    assert [answer.ids for answer in answers] == [[3, 4, 5, 6], [7, 8]]
    assert heard == [(0, 3), (1, 7), (0, 4), (1, 8), (0, 5), (0, 6)]

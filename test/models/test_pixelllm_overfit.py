"""A tiny PixelLLM learns a few scenes by heart: the words it is given, and where in the image each of them is."""

from dataclasses import replace

import pytest
import torch

from pixel_perception.models.pixelllm.config import PixelLLMConfig
from pixel_perception.models.pixelllm.location_head import words as word_positions
from pixel_perception.models.pixelllm.model import PixelLLM
from pixel_perception.models.pixelllm.objective import Batch, forward
from pixel_perception.models.sam import TwoWayConfig

SIDE = 64
COLOURS = torch.tensor([[230, 40, 40], [40, 200, 60], [50, 70, 230], [230, 210, 50]])
OBJECT, FIRST_COLOUR = 10, 11


def scene(generator):
    """Two coloured boxes on grey, and their description: "<colour> object <colour> object", each word at its box."""
    image = torch.full((3, SIDE, SIDE), 110.0) + 8 * torch.randn(3, SIDE, SIDE, generator=generator)
    colours = torch.randperm(4, generator=generator)[:2]
    tokens, places = [0], [torch.zeros(2, 2)]
    for side, colour in enumerate(colours.tolist()):
        x0 = 4 + 32 * side + int(torch.randint(0, 10, (), generator=generator))
        y0 = int(torch.randint(4, 36, (), generator=generator))
        width, height = torch.randint(10, 18, (2,), generator=generator).tolist()
        image[:, y0 : y0 + height, x0 : x0 + width] = COLOURS[colour, :, None, None].float()
        box = torch.tensor([[x0, y0], [x0 + width, y0 + height]]).float()
        tokens += [FIRST_COLOUR + colour, OBJECT]
        places += [box, box]
    return image, torch.tensor([*tokens, 1, 0]), torch.stack([*places, torch.zeros(2, 2), torch.zeros(2, 2)])


def eight_scenes():
    generator = torch.Generator().manual_seed(3)
    images, tokens, places = (torch.stack(x) for x in zip(*(scene(generator) for _ in range(8)), strict=True))
    size = torch.full((8, 2), float(SIDE))
    whole = torch.tensor([0.0, 0.0, SIDE, SIDE]).expand(8, 1, 4)
    return Batch(images, size, whole, tokens[:, None], torch.ones(8, 1, dtype=torch.bool), traces=places[:, None])


def small(language):
    config = PixelLLMConfig.tiny(language)
    plain = replace(config.language, dropout=0.0)
    return replace(config, image_size=SIDE, language=plain, masks=None, words=7, smoothing=0.0,
                   semantic=replace(config.semantic, drop_path=0.0, pretrain_grid=4),
                   spatial=replace(config.spatial, pretrain_grid=4, output=64),
                   features=replace(config.features, queries=8, transformer=TwoWayConfig(dim=64, mlp=128)))


@pytest.fixture(autouse=True)
def one_thread():
    """The operations are so small that a second thread only waits for the first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("language", ["t5", "text_decoder"])
def test_learns_eight_scenes(language):
    torch.manual_seed(0)
    batch, model = eight_scenes(), PixelLLM(small(language))
    steps = 200
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    counted = word_positions(batch.tokens, 0, 1)
    model.train()
    for _ in range(steps):
        done = forward(model, batch)
        optimizer.zero_grad()
        done.losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        distance = (done.words.points.detach() - batch.traces).abs()[counted].mean() / SIDE
        if distance < 0.008 and done.losses["text"].item() < 0.02:
            break
    model.eval()
    with torch.no_grad():
        features = model.encode(batch.images, batch.valid)
        visual = model.extract(features, batch.prompts)
        written, _ = model.write(visual)
        error = (model.trace(features, visual, batch.tokens).points - batch.traces).abs()[counted].mean() / SIDE
    assert error < 0.02
    assert torch.equal(written[..., :6], batch.tokens[..., :6])

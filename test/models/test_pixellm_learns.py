"""A tiny PixelLM learns eight painted scenes by heart: two shapes each, named by colour, several per question."""

import numpy as np
import torch

from pixel_perception.models import losses
from pixel_perception.models.pixellm.config import PixelLMConfig
from pixel_perception.models.pixellm.generation import generate
from pixel_perception.models.pixellm.images import prepare
from pixel_perception.models.pixellm.model import IMAGE_SLOT, Batch, PixelLM

COLOURS = [(220, 40, 40), (40, 200, 60), (50, 80, 230), (230, 210, 40)]
FIRST_COLOUR, AND, END = 10, 20, 2
SCENES, HEIGHT, WIDTH, STEPS = 8, 96, 128, 300


def paint(seed):
    """A scene (96, 128, 3) with a disc and a box of two colours: image, the two colours, masks (2, 96, 128)."""
    random = np.random.RandomState(seed)
    image = np.tile(random.randint(90, 160, (1, 1, 3)), (HEIGHT, WIDTH, 1)).astype(np.uint8)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    colours = random.permutation(len(COLOURS))[:2].tolist()
    side = random.randint(2)
    masks = []
    for place, colour in enumerate(colours):
        centre = 32 + 64 * ((place + side) % 2) + random.randint(-6, 7), HEIGHT // 2 + random.randint(-18, 19)
        radius = random.randint(18, 25)
        away = np.abs(x - centre[0]), np.abs(y - centre[1])
        masks.append(np.hypot(*away) < radius if place else np.maximum(*away) < radius)
        image[masks[-1]] = COLOURS[colour]
    return image, colours, np.stack(masks)


def batch_of(config, scenes):
    """One question for each scene that asks for both shapes, or for the second alone in every other scene."""
    run, rows, masks, frames, fitted = config.codebook.ids, [], [], [], []
    for i, (image, colours, truth) in enumerate(scenes):
        asked = [0, 1] if i % 2 == 0 else [1]
        question = [1, IMAGE_SLOT, *(FIRST_COLOUR + colours[k] for k in asked)]
        answer = [*run, AND, *run, END] if len(asked) == 2 else [*run, END]
        rows.append((question, answer))
        masks.append(torch.from_numpy(truth[asked]).float())
        frame, size = prepare(image, config.vision.side)
        frames.append(frame)
        fitted.append(size)
    length = max(len(q) + len(a) for q, a in rows)
    ids = torch.tensor([q + a + [0] * (length - len(q + a)) for q, a in rows])
    labels = torch.tensor([
        [losses.IGNORE] * len(q) + a + [losses.IGNORE] * (length - len(q + a)) for q, a in rows
    ])
    sources = [image.shape[:2] for image, _, _ in scenes]
    return Batch(torch.stack(frames), fitted, sources, ids, ids != 0, list(range(len(rows))), labels, masks), rows


def overlaps(logits, truth):
    both, either = losses.intersection_and_union(logits > 0, truth > 0.5)
    return (both / either).tolist()


def test_tiny_configuration_overfits_eight_scenes():
    torch.manual_seed(0)
    model = PixelLM(PixelLMConfig.tiny())
    model.fusion.weights.data.fill_(1.0)  # from scratch the published 1 / 6 lets the question through too faintly
    batch, rows = batch_of(model.config, [paint(seed) for seed in range(SCENES)])
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=STEPS, pct_start=0.1)
    for _ in range(STEPS):
        output = model(batch)
        optimiser.zero_grad()
        output.losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        taught = [x for a, b in zip(output.masks, batch.masks, strict=True) for x in overlaps(a, b)]
        if np.mean(taught) > 0.97 and output.losses["text"] < 0.05:
            break
    model.eval()
    with torch.no_grad():
        features = model.encode(batch.images, batch.fitted)
    free = []
    for image, (question, answer) in enumerate(rows):
        spoken = generate(model, features, question, image=image, limit=20)
        assert spoken.ids == answer
        masks = model.masks(spoken.fused, features, [image] * len(spoken.starts), batch.sources)
        free += overlaps(masks[image].detach(), batch.masks[image])
    assert np.mean(free) > 0.95

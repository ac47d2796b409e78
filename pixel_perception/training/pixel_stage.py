"""Stage 1, pixels: everything but the language model learns from phrases that the frozen language model embeds.

Ten times cheaper per image than running the language model, and it leaves little to learn afterwards: the second
stage only has to bring the model's own hidden states to where these phrase queries are.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixel_perception.models.compact import Compact
from pixel_perception.models.config import CompactConfig
from pixel_perception.simulation.phrases import Phrase, Vocabulary, absent, affordances, groups, single
from pixel_perception.training.compact import CompactLesson, listed, tinted
from pixel_perception.training.lesson import Picture
from pixel_perception.training.objectives import centre_losses, direction_loss, target_losses
from pixel_perception.training.scenes import Scene, centre_targets, images
from pixel_perception.training.state import complain, read_tensors, shapes
from pixel_perception.training.words import PhraseEncoder, WordTeacher

PRESENT, ABSENT, OBJECTS = 5, 3, 2
"""Phrases of either kind and class-agnostic object masks per image."""
SINGLE_FORMS = {"name": 6, "color": 5, "synonym": 4, "relation": 3, "superlative": 2}


def draw_phrases(scene: Scene, rng: random.Random, vocabulary: Vocabulary) -> list[Phrase]:
    """`PRESENT` phrases that mean something (different objects first), then `ABSENT` ones that do not."""
    pool = single(scene.objects, scene.size)
    wanted: list[Phrase] = []
    if rng.random() < 0.5:
        wanted += rng.sample([p for p in affordances(scene.objects) if p.labels] or pool, 1) if pool else []
    kinds = groups(scene.objects)
    several = [p for p in kinds if len(p.labels) > 1]
    wanted += rng.sample(several if several and rng.random() < 0.7 else kinds, 1)
    seen: set[int] = set()
    while pool and len(wanted) < PRESENT:
        forms = sorted({p.form for p in pool})
        form = rng.choices(forms, [SINGLE_FORMS[f] for f in forms])[0]
        choice = [p for p in pool if p.form == form]
        phrase = rng.choice([p for p in choice if p.labels[0] not in seen] or choice)
        pool.remove(phrase)
        seen.add(phrase.labels[0])
        wanted.append(phrase)
    none = [p for p in affordances(scene.objects) if not p.labels]
    missing = [absent(scene.objects, vocabulary, rng) for _ in range(ABSENT - 1)]
    missing.append(rng.choice(none) if rng.random() < 0.4 else absent(scene.objects, vocabulary, rng, rng.choice(["one", "all"])))
    return wanted[:PRESENT] + missing


class PixelStage(CompactLesson):
    """The losses of stage 1 for a batch of scenes."""

    def __init__(self, model: Compact, phrase_width: int, nouns: Tensor, colors: Tensor):
        """nouns, colors: word directions (words, hidden); the last noun is the table, for what is no object."""
        super().__init__()
        self.model, dim = model, model.config.image.dim
        levels = model.config.codebook.levels
        self.phrase_query = nn.Sequential(nn.LayerNorm(phrase_width), nn.Linear(phrase_width, 512), nn.GELU(),
                                          nn.Linear(512, levels * dim), nn.Unflatten(-1, (levels, dim)))
        self.register_buffer("nouns", nouns, persistent=False)
        self.register_buffer("colors", colors, persistent=False)

    def parts(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """batch of `collate` -> weighted losses by name."""
        features = self.model.image_encoder(batch["images"])
        visual, objects, align = self.model.prompt_features(features, batch["boxes"])
        queries = torch.cat([self.phrase_query(batch["phrases"]), objects[:, :OBJECTS]], 1)
        losses = target_losses(self.model.pixel_decoder(features, queries), batch["masks"], batch["there"], batch["judged"])
        losses |= centre_losses(*self.model.proposals.maps(features.s8), batch["heat"], batch["centres"], batch["near"])
        known = batch["noun"] >= -1
        losses["noun"] = 0.5 * direction_loss(align[:, :, 0][known], self.nouns, batch["noun"][known] % len(self.nouns))
        losses["color"] = 0.5 * direction_loss(align[:, :, 1].flatten(0, 1), self.colors, batch["color"].flatten())
        # Keeps the scale and the place code near zero cost until the language model uses them.
        losses["visual"] = 1e-4 * visual.square().mean()
        return losses

    def look(self, batch: dict[str, Any]) -> list[Picture]:
        """Masks of the phrases that are there, and of those that are thought to be."""
        decoded = self.model.pixel_decoder(self.model.image_encoder(batch["images"]), self.phrase_query(batch["phrases"]))
        pictures = []
        for b, texts in enumerate(batch["texts"]):
            pixels = batch["images"][b].cpu().numpy()
            there = batch["there"][b, : len(texts)].nonzero().flatten().tolist()
            found = (decoded.presence[b] > 0).nonzero().flatten().tolist()
            target = tinted(pixels, [batch["masks"][b, t] for t in there], there)
            prediction = tinted(pixels, [decoded.mask[b, t].sigmoid() for t in found], found)
            asked, wanted, said = (listed(texts, numbers) for numbers in (range(len(texts)), there, found))
            pictures.append(Picture(pixels, target, prediction, asked, wanted, said))
        return pictures


def region_targets(scenes: list[Scene], vocabulary: Vocabulary, rng: random.Random, count: int) -> dict[str, Tensor]:
    """Jittered object boxes (B, count, 4) with noun and colour indices; noun -1 is background, -100 unused."""
    boxes = torch.zeros(len(scenes), count, 4)
    noun, color = torch.full((len(scenes), count), -100), torch.full((len(scenes), count), -100)
    for b, scene in enumerate(scenes):
        things = rng.sample(scene.objects, len(scene.objects))
        for k in range(count):
            if k < len(things) and k < count - 1:
                x0, y0, x1, y1 = scene.box(things[k])
                w, h = x1 - x0, y1 - y0
                noun[b, k], color[b, k] = vocabulary.nouns.index(things[k].noun), vocabulary.colors.index(things[k].color)
                boxes[b, k] = torch.tensor([x0 + rng.gauss(0, 0.06) * w, y0 + rng.gauss(0, 0.06) * h,
                                            x1 + rng.gauss(0, 0.06) * w, y1 + rng.gauss(0, 0.06) * h])
            else:
                w, h = rng.uniform(0.06, 0.3), rng.uniform(0.06, 0.3)
                x, y = rng.uniform(0, 1 - w), rng.uniform(0, 1 - h)
                boxes[b, k] = torch.tensor([x, y, x + w, y + h])
                inside = scene.labels[int(y * scene.size[1]) : int((y + h) * scene.size[1]) + 1,
                                      int(x * scene.size[0]) : int((x + w) * scene.size[0]) + 1]
                noun[b, k] = -1 if (inside > 0).mean() < 0.1 else -100
        scene.order = things
    return {"boxes": boxes.clamp(0, 1), "noun": noun, "color": color}


def collate(scenes: list[Scene], rng: random.Random, vocabulary: Vocabulary, encode: PhraseEncoder,
            shape: tuple[int, int]) -> dict[str, Any]:
    """Scenes -> tensors of `PixelStage`. `shape` is (h, w) of the stride-8 map."""
    batch = region_targets(scenes, vocabulary, rng, 8)
    slots = PRESENT + ABSENT + OBJECTS
    h4, w4 = 2 * shape[0], 2 * shape[1]
    masks = torch.zeros(len(scenes), slots, h4, w4)
    there = torch.zeros(len(scenes), slots, dtype=torch.bool)
    judged = there.clone()
    judged[:, : PRESENT + ABSENT] = True  # an object found by its own box says nothing of presence
    texts: list[str] = []
    for b, scene in enumerate(scenes):
        phrases = draw_phrases(scene, rng, vocabulary)
        phrases = phrases + [phrases[-1]] * (PRESENT + ABSENT - len(phrases))
        texts += [p.text for p in phrases]
        wanted = [p.labels for p in phrases] + [(o.label,) for o in scene.order[:OBJECTS]]
        for t, labels in enumerate(wanted):
            there[b, t] = bool(labels)
            masks[b, t] = scene.mask(labels)
    heat, centres, near = centre_targets(scenes, *shape)
    phrases = encode(texts).unflatten(0, (len(scenes), -1))
    return batch | {"images": images(scenes), "phrases": phrases, "masks": masks, "there": there, "judged": judged,
                    "heat": heat, "centres": centres, "near": near,
                    "texts": [texts[i : i + PRESENT + ABSENT] for i in range(0, len(texts), PRESENT + ABSENT)]}


def build(vocabulary: Vocabulary, start: str | None):
    """The stage and its `collate(records, rng, done)`; `start` optionally continues from weights of this stage."""
    from pixel_perception.training.base import imagenet_backbone

    words = WordTeacher(vocabulary)
    model = Compact(CompactConfig())
    model.image_encoder.backbone.load_imagenet(imagenet_backbone())
    model.image_encoder.to(memory_format=torch.channels_last)
    stage = PixelStage(model, words.encode.width, words.nouns, words.colors)
    if start:
        weights = read_tensors(Path(start))
        complain(Path(start), shapes(weights), shapes(stage.state_dict()))
        stage.load_state_dict(weights)
    image = model.config.image

    def prepare(records, rng, done):
        scenes = [Scene(r, rng) for r in records]
        return collate(scenes, rng, vocabulary, words.encode, (image.height // 8, image.width // 8))

    return stage, prepare

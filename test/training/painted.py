"""Painted scenes on disk and word vectors: what the training tests learn from."""

import json
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pixel_perception.simulation.catalog import PALETTE
from pixel_perception.simulation.dataset import Record, load
from pixel_perception.simulation.phrases import Vocabulary

WIDTH, HEIGHT = 128, 96
VOCABULARY = Vocabulary(("ball", "box", "plate", "cup", "hammer"), ("blue", "green", "red"))


def paint(folder: Path, scenes: int = 4, views: int = 1) -> list[Record]:
    """Scenes of three coloured squares; the views of a scene differ in where the squares lie."""
    rng, lines = random.Random(0), []
    for k in range(scenes * views):
        scene, view = divmod(k, views)
        image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
        labels, objects = np.zeros((HEIGHT, WIDTH), np.uint8), []
        for label, noun in enumerate(VOCABULARY.nouns[:3], start=1):
            color = VOCABULARY.colors[(scene + label) % 3]
            x, y, side = 8 + 40 * ((label - 1 + view) % 3), rng.randint(5, 50), 32
            image[y : y + side, x : x + side] = np.array(PALETTE[color]) * 255
            labels[y : y + side, x : x + side] = label
            objects.append({"label": label, "id": noun, "noun": noun, "color": color, "synonyms": [], "area": side * side,
                            "box": [x, y, x + side, y + side], "position": [0, 0, 0]})  # fmt: skip
        name = f"{scene:06d}-{view}"
        Image.fromarray(image).save(folder / f"{name}.jpg", quality=95)
        Image.fromarray(labels).save(folder / f"{name}.png")
        lines.append(json.dumps({"id": name, "size": [WIDTH, HEIGHT], "objects": objects}))
    (folder / "views-000000.jsonl").write_text("\n".join(lines))
    return load(folder)


class HashedPhrases:
    """Fixed random vectors per word, summed: tells phrases apart without a language model."""

    width = 24

    def __call__(self, phrases):
        return torch.stack([sum(self._word(w) for w in p.split()) for p in phrases])

    def _word(self, word):
        return torch.randn(self.width, generator=torch.Generator().manual_seed(sum(map(ord, word)) * 7 + len(word)))

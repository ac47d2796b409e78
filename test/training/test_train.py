"""The training loop on a tiny model and scenes that the test paints: it learns, stops and goes on."""

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from pixel_perception.models.config import CompactConfig, ImageConfig, LanguageConfig, RegionConfig
from pixel_perception.models.perception_model import PerceptionModel
from pixel_perception.simulation.catalog import PALETTE
from pixel_perception.simulation.dataset import load
from pixel_perception.simulation.phrases import Vocabulary
from pixel_perception.training.pixel_stage import PixelStage, collate
from pixel_perception.training.scenes import Scene
from pixel_perception.training.train import TrainConfig, train

WIDTH, HEIGHT = 128, 96
CONFIG = CompactConfig(ImageConfig(WIDTH, HEIGHT, 32, 8, 1), region=RegionConfig(proposals=4), language=LanguageConfig(hidden=16))
VOCABULARY = Vocabulary(("ball", "box", "plate", "cup", "hammer"), ("blue", "green", "red"))


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    rng, lines = random.Random(0), []
    for k in range(4):
        image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
        labels, objects = np.zeros((HEIGHT, WIDTH), np.uint8), []
        for label, noun in enumerate(VOCABULARY.nouns[:3], start=1):
            color = VOCABULARY.colors[(k + label) % 3]
            x, y, side = 8 + 40 * (label - 1), rng.randint(5, 50), 32
            image[y : y + side, x : x + side] = np.array(PALETTE[color]) * 255
            labels[y : y + side, x : x + side] = label
            objects.append({"label": label, "id": noun, "noun": noun, "color": color, "synonyms": [], "area": side * side,
                            "box": [x, y, x + side, y + side], "position": [0, 0, 0]})  # fmt: skip
        Image.fromarray(image).save(folder / f"{k}.jpg", quality=95)
        Image.fromarray(labels).save(folder / f"{k}.png")
        lines.append(json.dumps({"id": str(k), "size": [WIDTH, HEIGHT], "objects": objects}))
    (folder / "views-000000.jsonl").write_text("\n".join(lines))
    return load(folder)


class HashedPhrases:
    """Fixed random vectors per word, summed: tells phrases apart without a language model."""

    width = 24

    def __call__(self, phrases):
        return torch.stack([sum(self._word(w) for w in p.split()) for p in phrases])

    def _word(self, word):
        return torch.randn(self.width, generator=torch.Generator().manual_seed(sum(map(ord, word)) * 7 + len(word)))


def stage():
    torch.manual_seed(0)
    directions = nn.functional.normalize(torch.randn(9, 16), dim=-1)
    return PixelStage(PerceptionModel(CONFIG), HashedPhrases.width, directions[:6], directions[6:])


def prepare(records, rng, done):
    return collate([Scene(r) for r in records], rng, VOCABULARY, HashedPhrases(), (HEIGHT // 8, WIDTH // 8))


def config(folder, steps):
    return TrainConfig("pixels", "", "", str(folder), steps=steps, batch=2, warmup_steps=5)


def test_it_learns(tmp_path, records):
    network = stage()
    batch = prepare(records, random.Random(0), 0)
    before = {k: v.item() for k, v in network(batch).items()}
    train(config(tmp_path, 60), network, prepare, records)
    after = {k: v.item() for k, v in network(batch).items()}
    assert all(after[k] < 0.6 * before[k] for k in ("mask", "presence", "heat", "noun", "color")), (before, after)


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path, records, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config(whole, 6), stage(), prepare, records)
    calls = {"n": 0}

    def killed(records, rng, done):
        calls["n"] += 1
        if calls["n"] > 3:
            raise KeyboardInterrupt
        return prepare(records, rng, done)

    with pytest.raises(KeyboardInterrupt):
        train(config(parts, 6), stage(), killed, records)
    assert json.loads((parts / "progress.json").read_text())["step"] == 3
    train(config(parts, 6), stage(), prepare, records)
    first, second = load_file(whole / "weights.safetensors"), load_file(parts / "weights.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[k], second[k], atol=1e-6) for k in first)


def test_a_run_that_diverges_says_so_and_keeps_the_last_state(tmp_path, records, capsys):
    def broken(records, rng, done):
        batch = prepare(records, rng, done)
        batch["phrases"] = batch["phrases"] * float("nan")
        return batch

    with pytest.raises(SystemExit):
        train(config(tmp_path, 3), stage(), broken, records)
    assert "the loss is nan" in capsys.readouterr().out

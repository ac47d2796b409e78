"""The training loop on a tiny model and scenes that the test paints: it learns, stops and goes on."""

import json
import random

import pytest
import torch
from painted import HEIGHT, VOCABULARY, WIDTH, HashedPhrases, paint
from safetensors.torch import load_file
from torch import nn

from pixel_perception.models.compact import Compact
from pixel_perception.models.config import CompactConfig, ImageConfig, LanguageConfig, RegionConfig
from pixel_perception.training.pixel_stage import PixelStage, collate
from pixel_perception.training.scenes import Scene
from pixel_perception.training.train import TrainConfig, train

CONFIG = CompactConfig(ImageConfig(WIDTH, HEIGHT, 32, 8, 1), region=RegionConfig(proposals=4), language=LanguageConfig(hidden=16))


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return paint(tmp_path_factory.mktemp("views"))


def stage():
    torch.manual_seed(0)
    directions = nn.functional.normalize(torch.randn(9, 16), dim=-1)
    return PixelStage(Compact(CONFIG), HashedPhrases.width, directions[:6], directions[6:])


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

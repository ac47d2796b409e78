"""Torch against exported: the shipped weights where there are any, else the networks as initialised.

Everything is exported anew, so this holds the exporter as it is now, and the shipped parts as they are.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from pixel_perception.bundle import MANIFEST
from pixel_perception.errors import PerceptionError
from pixel_perception.export import command, parity
from pixel_perception.export.bundle import TRAINED, assemble, trained_state, write_parts
from pixel_perception.export.exported import QUESTIONS
from pixel_perception.models.compact import Compact
from pixel_perception.models.config import CompactConfig
from pixel_perception.models.language import Language
from pixel_perception.runtime.agreement import cosine
from pixel_perception.runtime.onnxruntime import OnnxRuntime
from pixel_perception.training.base import load_language_model

ROOT = Path(__file__).parents[2]
SHIPPED, IMAGES = ROOT / "weights" / "compact", ROOT / "demo" / "recording"
HAVE_WEIGHTS = (SHIPPED / MANIFEST).is_file()


@pytest.fixture(scope="module")
def model():
    if HAVE_WEIGHTS:
        return command.load_run(SHIPPED)
    torch.manual_seed(0)
    model = Compact(CompactConfig())
    model.language = Language(load_language_model()[0].float(), model.config)
    for name, parameter in model.language.base.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    return model.eval()


@pytest.fixture(scope="module")
def parts(model, tmp_path_factory):
    return write_parts(model, tmp_path_factory.mktemp("parts") / "compact", {"run": "test"})


@pytest.fixture(scope="module")
def bundle(parts, tmp_path_factory):
    return assemble(parts, tmp_path_factory.mktemp("bundles") / "compact")


@pytest.fixture(scope="module")
def samples():
    return parity.read_samples(IMAGES, 12)


def test_parts_hold_every_trained_tensor(model, parts):
    stored = load_file(parts / TRAINED)
    for name, tensor in trained_state(model).items():
        assert stored[name].dtype == np.float16
        np.testing.assert_array_equal(stored[name], tensor.half().numpy())
    assert sum(path.stat().st_size for path in parts.iterdir()) < 30e6


def test_vision_graphs_equal_torch(model, bundle, samples):
    exported = parity.Exported(bundle, OnnxRuntime())
    frames = np.stack([s.image for s in samples[:2]])
    with torch.inference_mode():
        features = model.image_encoder(torch.from_numpy(frames))
    maps = exported.run("image_encoder", image=frames)
    for name, wanted in zip(("features_16", "features_8", "mask_features"), features, strict=True):
        difference = np.abs(maps[name] - wanted.numpy()).max()
        assert difference < 0.02 * wanted.abs().max()
    boxes = np.random.default_rng(0).uniform(0, 0.5, (2, 3, 4)).astype(np.float32)
    boxes[..., 2:] += 0.5
    prompted = exported.run("prompt_feature_extractor", features_16=maps["features_16"], features_8=maps["features_8"], boxes=boxes)
    with torch.inference_mode():
        tokens, queries, _ = model.prompt_features(features, torch.from_numpy(boxes))
    assert cosine(prompted["visual_tokens"], tokens.numpy()).min() > 0.999
    assert cosine(prompted["object_queries"], queries.numpy()).min() > 0.999


def test_language_agrees_with_torch(model, bundle, samples):
    """Greedy choices of the int8 graph, token by token with a cache, against torch reading them in one pass."""
    exported, choices = parity.Exported(bundle, OnnxRuntime()), []
    for sample in samples[:4]:
        trace = exported.answer(sample)
        states, logits, *_ = parity.reference(model, sample, trace)
        assert cosine(trace.states, states).mean() > parity.GATES["hidden_cosine"]
        choices += [w.argmax() == c for (_, c, _), w in zip(trace.choices, logits, strict=True)]
    assert np.mean(choices) > 0.85


@pytest.mark.skipif(not HAVE_WEIGHTS, reason="no trained parts in weights/compact")
def test_shipped_weights_pass_every_gate(model, tmp_path):
    shipped = assemble(SHIPPED, tmp_path / "compact")
    # With so few questions, guesses about photographs, which training never saw, would decide alone.
    samples = [s for s in parity.read_samples(IMAGES, 32) if s.question not in QUESTIONS]
    figures = parity.compare(model, shipped, samples)
    assert parity.judge(figures) is None, figures
    assert parity.judge(shipped.parity) is None and parity.scarce(shipped.parity) is None
    assert shipped.parity["precision"] == figures["precision"] and not shipped.manifest.accepted_drift


def figures(**changes):
    values = {"hidden_cosine": 0.995, "mask_iou": 0.99, "token_agreement": 0.99} | changes
    return {"backends": {"onnxruntime-cpu": values}}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, None),
        ({"hidden_cosine": 0.98}, "onnxruntime-cpu: hidden_cosine is 0.98, expected at least 0.99."),
        ({"mask_iou": 0.9}, "onnxruntime-cpu: mask_iou is 0.9, expected at least 0.98."),
        ({"mask_iou": None}, "could not be measured"),
        (None, "no backend was compared"),
    ],
)
def test_gates(changes, sentence):
    verdict = parity.judge({"backends": {}} if changes is None else figures(**changes))
    assert verdict is None if sentence is None else sentence in verdict


def test_few_prompts_are_told():
    assert parity.scarce({"prompts": 64, "images": 15}) is None
    assert "12 different questions about 3 images were compared, expected at least 64" in parity.scarce({"prompts": 12, "images": 3})


def test_divergence_by_hand():
    # p = (3/4, 1/4), q = (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2).
    wanted, ours = np.log([3.0, 1.0]), np.log([5.0, 5.0])
    assert parity.divergence(wanted, ours) == pytest.approx(0.75 * np.log(1.5) - 0.25 * np.log(2))
    assert parity.divergence(wanted, wanted + 7) == pytest.approx(0)


def test_samples_are_spread_and_repeat(tmp_path):
    from PIL import Image

    for i in range(5):
        Image.new("RGB", (40, 20), (i, 0, 0)).save(tmp_path / f"{i}.png")
    Image.new("L", (40, 20)).save(tmp_path / "0-depth.png")
    reds = [int(s.image[0, 0, 0]) for s in parity.read_samples(tmp_path, 8)]
    assert reds == [0, 1, 2, 3, 4, 0, 1, 2]
    sample = parity.read_samples(tmp_path, 1)[0]
    assert sample.image.shape == (288, 384, 3)
    np.testing.assert_allclose(sample.whole, [0, 0, 1, 192 / 288])


def test_bad_input(tmp_path):
    with pytest.raises(PerceptionError, match="expected at least one .jpg or .png"):
        parity.read_samples(tmp_path, 4)
    with pytest.raises(PerceptionError, match="expected the weights of a training run"):
        command.main([str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--images", str(IMAGES)])
    (tmp_path / "provenance.json").write_text("[1]")
    with pytest.raises(PerceptionError, match="provenance.json: expected a JSON object, found list"):
        command.main(
            [
                str(tmp_path),
                "--out",
                str(tmp_path / "out"),
                "--images",
                str(IMAGES),
                "--provenance",
                str(tmp_path / "provenance.json"),
            ]
        )
    assert not (tmp_path / "out").exists()

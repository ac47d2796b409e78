"""PixelLLM against slices of the reference's own numbers, kept in test/golden/pixelllm_*.npz.

They are every n-th element of arrays that the reference implementation (google-research/scenic, projects/pixel_llm,
commit 4a38d47, Apache-2.0) gave on the CPU with tiny weights drawn from the tensors' names; `rule` below draws the same
weights again. With PIXEL_PERCEPTION_ORACLE set to a folder of whole arrays, those are compared too.
"""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from pixel_perception.evaluation import oracle, oracle_pixelllm

GOLDEN = Path(__file__).parent.parent / "golden"
SLICE = 256
FOLDER = os.environ.get("PIXEL_PERCEPTION_ORACLE", "")


def rule(name, shape):
    """A tensor's values from its name: normal, scaled by what kind of tensor it is."""
    leaf = name.rsplit("/", 1)[-1]
    values = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF).standard_normal(tuple(shape))
    values = values.astype(np.float32)
    if leaf in ("scale", "bias"):
        return 1 + 0.1 * values if leaf == "scale" else 0.05 * values
    if "gaussian" in name or "embedding" in leaf:
        return 0.5 * values
    return values / np.sqrt(max(1, np.prod(shape[:-1]))) if values.ndim >= 2 else 0.1 * values


def golden(part):
    with np.load(GOLDEN / f"pixelllm_{part}.npz") as stored:
        return {name: stored[name] for name in stored.files if name != "source"}


def inputs(part):
    return {name.removeprefix("input_"): x for name, x in golden(part).items() if name.startswith("input_")}


@pytest.fixture(scope="module")
def model():
    shapes = json.loads(str(golden("shapes")["tiny"]))
    return oracle_pixelllm.build({name: tuple(shape) for name, shape in shapes.items()}, rule)


@pytest.fixture(scope="module")
def scene(model):
    with torch.no_grad():
        return oracle_pixelllm.Scene(model, inputs("refseg"))


def reproduce(check, model, scene, part, arrays=None):
    """Rows of a check, compared at the stored elements."""
    with torch.no_grad():
        ours = check(model, scene, arrays or inputs(part))
    stored = golden(part)
    sliced, references = {}, {}
    for name, reference in stored.items():
        kind, plain = name.split("_", 1)
        if kind == "input":
            continue
        flat = np.asarray(torch.as_tensor(ours[plain]).detach(), dtype=np.float64).reshape(-1)
        references[plain] = reference.reshape(-1)
        sliced[plain] = flat[:: max(1, flat.size // SLICE)] if kind == "slice" else flat
    rows = list(oracle_pixelllm.rows(part, sliced, references))
    assert not [row for row in rows if not row["pass"]]
    return {row["array"] for row in rows}


def test_referring_segmentation(model, scene):
    arrays = reproduce(oracle_pixelllm.referring, model, scene, "refseg")
    assert {"git_features", "sam_features", "adapter_tokens", "logits", "abs_points", "pred_boxes", "pred_masks",
            "metric_text_loss", "metric_point_loss", "metric_mask_loss"} <= arrays


def test_traces(model, scene):
    assert reproduce(oracle_pixelllm.trace, model, scene, "trace") == {
        "abs_points", "metric_text_loss", "metric_point_loss"}


def test_greedy_and_beam_decoding(model, scene):
    whole = {name.removeprefix("whole_"): x for name, x in golden("decode").items()}
    assert len(reproduce(oracle_pixelllm.decode, model, scene, "decode", whole)) == 5


def test_dense_captioning(model, scene):
    boxes = {"boxes": golden("densecap")["slice_boxes"].reshape(1, -1, 4)}
    assert len(reproduce(oracle_pixelllm.dense_captions, model, scene, "densecap", boxes)) == 19


def test_float32_is_as_good(model, scene):
    """The numbers do not need double precision; only the unscaled scores of T5 make its states a little noisy."""
    with torch.no_grad():
        model.float()
        features = model.encode(scene.images.float(), scene.valid)
        words = model.read(features, model.extract(features, scene.prompts.float()), scene.tokens, scene.context)
        model.double()
        expected = model.read(scene.features, scene.visual, scene.tokens, scene.context)
    assert torch.allclose(words.logits.double(), expected.logits, atol=3e-4)
    assert torch.allclose(words.points.double(), expected.points, atol=2e-3)


@pytest.mark.skipif(not FOLDER, reason="PIXEL_PERCEPTION_ORACLE names no folder of whole arrays")
def test_whole_arrays():
    rows = list(oracle_pixelllm.checks(Path(FOLDER)))
    assert rows and not [row for row in rows if not row["pass"]]
    assert all(row.keys() == oracle.compare("", "", 0.0, 0.0).keys() for row in rows)

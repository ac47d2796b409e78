"""PixelLM against slices of the published code's own numbers, kept in test/golden/pixellm_*.npz.

They are every n-th element of arrays that the published PixelLM code (commit ebf0792, Apache-2.0) gave on the CPU
with tiny weights drawn from the tensors' names; `rule` below draws the same weights again. With
PIXEL_PERCEPTION_ORACLE set to a folder of whole arrays, those are compared too.
"""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from pixel_perception.evaluation import oracle, oracle_pixellm
from pixel_perception.models.pixellm.images import prepare

GOLDEN = Path(__file__).parent.parent / "golden"
SLICE = 256
FOLDER = os.environ.get("PIXEL_PERCEPTION_ORACLE", "")


def rule(name, shape):
    """A tensor's values from its name: normal, scaled by what kind of tensor it is."""
    generator = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    values, shape = generator.standard_normal(tuple(shape)).astype(np.float32), tuple(shape)
    if "gaussian_matrix" in name or ("embed" in name and len(shape) == 2):
        return values * np.float32(0.5)
    if len(shape) >= 2:
        return values / np.float32(np.sqrt(np.prod(shape[1:])))
    return 1 + np.float32(0.1) * values if name.endswith(".weight") else np.float32(0.05) * values


def golden(part):
    with np.load(GOLDEN / f"pixellm_{part}.npz") as stored:
        return {name: stored[name] for name in stored.files if name != "source"}


@pytest.fixture(scope="module")
def model():
    shapes = json.loads(str(golden("shapes")["tiny"]))
    return oracle_pixellm.build({name: tuple(shape) for name, shape in shapes.items()}, rule)


def reproduce(check, model, stored, **inputs):
    """Rows of a check that is fed the stored inputs and compared at the stored elements."""
    arrays = {name.removeprefix("input_"): value for name, value in stored.items() if name.startswith("input_")}
    wanted = {name.removeprefix("slice_"): value for name, value in stored.items() if name.startswith("slice_")}
    # outputs are listed by name so that a check knows which ones are asked for; masks lend their sizes
    arrays = {name: torch.zeros(3, 300, 210) for name in wanted} | arrays | inputs
    with torch.no_grad():
        ours = check(model, {name: torch.as_tensor(value) for name, value in arrays.items()}, rule)
    for name, reference in wanted.items():
        flat = np.asarray(torch.as_tensor(ours[name]).detach(), dtype=np.float64).reshape(-1)
        losses = {"tolerance": oracle.LOSSES, "relative": True} if name in oracle_pixellm.LOSS_ARRAYS else {}
        yield oracle.compare("golden", name, flat[:: max(1, flat.size // SLICE)], reference, **losses)


def frame(index):
    pixels, _ = prepare(golden("preprocess")[f"input_image_{index}"])
    return pixels[None]


def assert_all(rows, count):
    rows = list(rows)
    assert len(rows) == count
    assert not [row for row in rows if not row["pass"]]


def test_preprocessing(model):
    assert_all(reproduce(oracle_pixellm.preprocess, model, golden("preprocess")), 4)


def test_position_table_with_the_published_slip(model):
    assert_all(reproduce(oracle_pixellm.position_table, model, golden("posembed")), 2)


def test_forward_and_losses(model):
    stored = golden("forward")
    stored["input_gt_masks"] = stored["input_gt_masks"].astype(np.float32)
    assert_all(reproduce(oracle_pixellm.forward, model, stored, images_clip=frame(0)), 16)


def test_generation_with_given_tokens(model):
    assert_all(reproduce(oracle_pixellm.evaluate, model, golden("evaluate"), images_clip=frame(1)), 7)


def test_functions(model):
    stored = golden("functions")
    stored["input_G"] = stored["input_G"].astype(np.float32)
    assert_all(reproduce(oracle_pixellm.functions, model, stored), 9)


@pytest.mark.skipif(not Path(FOLDER, "pixellm_params.json").is_file(), reason="no PIXEL_PERCEPTION_ORACLE folder")
def test_whole_arrays():
    rows = list(oracle_pixellm.checks(Path(FOLDER)))
    assert rows and not [row for row in rows if not row["pass"]]


def test_wrong_numbers_fail_and_are_valid_json():
    rows = [
        oracle.compare("f", "far", [1.0], [2.0]), oracle.compare("f", "shape", [1.0], [1.0, 1.0]),
        oracle.compare("f", "nan", [np.nan], [1.0]),
    ]
    assert [row["pass"] for row in rows] == [False] * 3
    assert [row["max_error"] for row in json.loads(json.dumps(rows, allow_nan=False))] == [1.0, None, None]


def test_command_says_what_is_wrong(tmp_path, capsys):
    assert oracle.main([str(tmp_path / "absent")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert oracle.main([str(tmp_path), "--json"]) == 2
    assert "nothing to compare" in capsys.readouterr().err
    np.savez(tmp_path / "unknown.npz", x=np.zeros(2))
    assert oracle.main([str(tmp_path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == [
        {"file": "unknown.npz", "array": "x", "max_error": None, "tolerance": 1e-4, "pass": False}
    ]
    (tmp_path / "pixellm_params.json").write_text("{}")
    assert oracle.main([str(tmp_path)]) == 2
    assert "weights_rule.py" in capsys.readouterr().err

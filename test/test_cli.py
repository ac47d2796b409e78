"""The command line: help without heavy imports, mistakes answered by one sentence and exit code 2."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pixel_perception import cli
from pixel_perception.commands import read_image, split_seeds
from pixel_perception.errors import PerceptionError

HEAVY = ("torch", "transformers", "onnxruntime", "onnx", "mujoco", "rclpy", "scipy", "numpy")
OWN = ("ask", "inspect", "bundle", "assemble", "evaluate", "simulate", "demo", "record")


def refusal(capsys, *arguments: str) -> str:
    """Run the command line, expect exit code 2, one line on stderr and nothing on stdout; returns the line."""
    try:
        code = cli.main(arguments)
    except SystemExit as stop:  # argparse's own way out
        code = stop.code
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert printed.err.count("\n") == 1 and printed.err.startswith("pixel-perception")
    return printed.err


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(path)
    return str(path)


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in OWN)])
def test_help_imports_nothing_heavy(arguments):
    script = (f"import sys\nfrom pixel_perception import cli\ntry:\n    code = cli.main({arguments})\nexcept SystemExit as stop:\n"
              f"    code = stop.code\nassert not code, code\nprint('LOADED', [m for m in {HEAVY} if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    *text, loaded = done.stdout.strip().splitlines()
    assert loaded == "LOADED []"
    assert text[0].startswith("usage: pixel-perception")


def test_help_names_every_command(capsys):
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in cli.COMMANDS)


def test_unknown_command(capsys):
    assert "no sub-command 'aks'" in refusal(capsys, "aks")


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (["the mug", "--box", "1,2,3"], "expected x0,y0,x1,y1"),
        (["the mug", "--task", "dance"], "--task"),
        ([], "text"),
        ([" ?"], "text"),
        (["a" * 2000], "characters"),
        (["--box", "50,50,60,60"], "boxes[0]"),
        (["--box", "9,9,3,3"], "boxes[0]"),
        (["the mug", "--threshold", "2"], "score_threshold"),
    ],
)
def test_bad_question(capsys, photo, extra, expected):
    assert expected in refusal(capsys, "ask", photo, *extra)


def test_missing_image(capsys, tmp_path):
    assert "nothing.jpg: No such file" in refusal(capsys, "ask", str(tmp_path / "nothing.jpg"), "the mug")


def test_image_that_is_none(capsys, tmp_path):
    path = tmp_path / "text.jpg"
    path.write_text("no image")
    assert "text.jpg: expected an image file" in refusal(capsys, "ask", str(path), "the mug")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_image_that_ends_too_soon_is_named(capsys, tmp_path, suffix):
    whole, path = tmp_path / f"whole.{suffix}", tmp_path / f"half.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)).save(whole)
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert f"half.{suffix}: expected an image file" in refusal(capsys, "ask", str(path), "the mug")


def test_images_of_every_mode_are_read_as_rgb(tmp_path):
    grey = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (8, 1))
    expected = np.repeat(grey[:, :, None], 3, 2)
    pictures = {"grey": Image.fromarray(grey), "16 bit": Image.fromarray(grey.astype(np.uint16) * 257), "rgb": Image.fromarray(expected),
                "rgba": Image.fromarray(expected).convert("RGBA")}  # fmt: skip
    for name, picture in pictures.items():
        picture.save(tmp_path / f"{name}.png")
        assert np.array_equal(read_image(str(tmp_path / f"{name}.png")), expected), name
    turned, exif = Image.fromarray(expected).transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn clockwise to show
    turned.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(str(tmp_path / "turned.png")), expected)


@pytest.mark.parametrize("arguments", [["--help"], ["ask", "--help"], ["--version"]])
def test_a_closed_pipe_is_no_mistake(arguments):
    read, write = os.pipe()
    os.close(read)
    script = f"import sys\nfrom pixel_perception.cli import main\nsys.exit(main({arguments}))"
    done = subprocess.run([sys.executable, "-c", script], stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_missing_bundle(capsys, photo, tmp_path):
    line = refusal(capsys, "ask", photo, "the mug", "--bundle", str(tmp_path / "none"))
    assert "manifest.json" in line and "no such file" in line
    assert "manifest.json" in refusal(capsys, "inspect", str(tmp_path / "none"))


def test_assets_must_be_named(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("PIXEL_PERCEPTION_ASSETS", raising=False)
    assert "--assets" in refusal(capsys, "simulate", str(tmp_path))
    assert "catalog.json" in refusal(capsys, "simulate", str(tmp_path), "--assets", str(tmp_path))


def test_pictures_need_a_folder(capsys):
    assert "--pictures needs --out" in refusal(capsys, "evaluate", "--pictures")


def test_recording_that_is_none(capsys, tmp_path):
    assert "recording.json: not found" in refusal(capsys, "demo", "--recording", str(tmp_path))


def test_a_folder_of_other_things_is_not_replaced(capsys, tmp_path):
    (tmp_path / "thesis.txt").write_text("only copy")
    assert "found other files" in refusal(capsys, "record", str(tmp_path), "--assets", str(tmp_path))
    assert (tmp_path / "thesis.txt").read_text() == "only copy"


def test_seeds_stay_in_their_split():
    assert split_seeds((900_000, 1_000_000), "test", None, 3) == range(900_000, 900_003)
    for start, count in ((899_999, 3), (999_999, 2), (None, 0)):
        with pytest.raises(PerceptionError, match="test split"):
            split_seeds((900_000, 1_000_000), "test", start, count)


def test_a_bug_is_not_dressed_up(monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "ask", ("json", "loads", "no command at all"))
    with pytest.raises(TypeError):
        cli.main(["ask"])
    with pytest.raises(json.JSONDecodeError):
        monkeypatch.setitem(cli.COMMANDS, "ask", ("test_cli_helper", "raise_it", ""))
        monkeypatch.setitem(sys.modules, "test_cli_helper", type("Helper", (), {"raise_it": staticmethod(lambda _: json.loads("{"))}))
        cli.main(["ask"])


def test_a_missing_extra_is_named(capsys, monkeypatch):
    def train(_):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setitem(sys.modules, "test_cli_helper", type("Helper", (), {"main": staticmethod(train)}))
    monkeypatch.setitem(cli.COMMANDS, "train", ("test_cli_helper", "main", ""))
    assert "pixel_perception[train]" in refusal(capsys, "train")

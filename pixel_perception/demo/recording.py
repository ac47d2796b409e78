"""A short recording on disk: colour images, depth, intrinsics and, for simulated scenes, the truth.

A recording is a folder with `recording.json` and the files it names:

    {"rate_hz": 10.0,
     "scenes": [{"name": "900012", "kind": "simulated", "credit": "...",
                 "frames": [{"image": "900012-0.jpg", "depth": "depth/900012-0.png", "labels": "labels/900012-0.png",
                             "intrinsics": [fx, fy, cx, cy],
                             "objects": [{"label": 1, "noun": "mug", "color": "red", "synonyms": [], "box": [x0, y0, x1, y1]}]}]}]}

`depth` (16-bit PNG, millimetres, 0 = unknown), `labels` (8-bit PNG, 0 background, k = the object with label k),
`intrinsics` (pixels) and `objects` are null or empty where they are not known (photographs).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image


class RecordingError(ValueError):
    """A recording is missing or a file of it is not what was expected."""


@dataclass(frozen=True)
class Thing:
    """One object of a simulated frame; `box` is (x0, y0, x1, y1) in pixels of the image."""

    label: int
    noun: str
    color: str
    synonyms: tuple[str, ...]
    box: tuple[float, float, float, float]

    @property
    def name(self) -> str:
        """Colour and noun, as a person would say it."""
        return self.noun if self.noun == self.color else f"{self.color} {self.noun}"


@dataclass(frozen=True)
class RecordedFrame:
    """One image of a recording; the arrays are read when they are asked for."""

    scene: str
    index: int
    image_file: Path
    depth_file: Path | None
    labels_file: Path | None
    intrinsics: tuple[float, float, float, float] | None
    """(fx, fy, cx, cy) in pixels."""
    things: tuple[Thing, ...]

    def image(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        return np.asarray(_open(self.image_file).convert("RGB"))

    def depth(self) -> np.ndarray | None:
        """(H, W) uint16 millimetres, 0 = unknown; None where the frame has none."""
        return None if self.depth_file is None else np.asarray(_open(self.depth_file)).astype(np.uint16)

    def labels(self) -> np.ndarray | None:
        """(H, W) uint8: 0 background, k the thing with `label` k; None where the frame has none."""
        return None if self.labels_file is None else np.asarray(_open(self.labels_file))


@dataclass(frozen=True)
class RecordedScene:
    """Consecutive frames of one camera in front of one scene. `kind` is "simulated" or "photograph"."""

    name: str
    kind: str
    credit: str
    frames: tuple[RecordedFrame, ...]


@dataclass(frozen=True)
class Recording:
    """All scenes of a recording folder."""

    folder: Path
    rate_hz: float
    scenes: tuple[RecordedScene, ...]

    @property
    def frames(self) -> tuple[RecordedFrame, ...]:
        """The frames of all scenes, one scene after another."""
        return tuple(frame for scene in self.scenes for frame in scene.frames)

    def scene(self, name: str) -> RecordedScene:
        """The scene of this name. Raises RecordingError when there is none."""
        for scene in self.scenes:
            if scene.name == name:
                return scene
        raise RecordingError(f"{self.folder}: no scene {name!r}; it holds {', '.join(s.name for s in self.scenes)}")

    @staticmethod
    def open(folder: str | Path) -> Recording:
        """Read `folder`. Raises RecordingError naming the file or field that is wrong."""
        folder = Path(folder)
        path = folder / "recording.json"
        if not path.is_file():
            raise RecordingError(f"{path}: not found; expected a recording folder (see pixel-perception record --help)")
        try:
            data = json.loads(path.read_text())
            scenes = tuple(_scene(folder, row) for row in data["scenes"])
            rate = float(data["rate_hz"])
        except json.JSONDecodeError as error:
            raise RecordingError(f"{path}: not valid JSON ({error})") from None
        except KeyError as error:
            raise RecordingError(f"{path}: lacks the field {error}") from None
        if not scenes or not all(s.frames for s in scenes) or not rate > 0:
            raise RecordingError(f"{path}: expected rate_hz above 0 and at least one scene, each with at least one frame")
        return Recording(folder, rate, scenes)


def back_and_forth(frames: tuple[RecordedFrame, ...]) -> Iterator[RecordedFrame]:
    """Endless loop over `frames` that turns at both ends, so that no frame jumps."""
    order = [*frames, *frames[-2:0:-1]]
    while True:
        yield from order


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except OSError as error:
        raise RecordingError(f"{path}: expected a readable image ({error})") from None


def _scene(folder: Path, row: dict) -> RecordedScene:
    frames = []
    for index, item in enumerate(row["frames"]):
        files = {key: folder / item[key] if item.get(key) else None for key in ("image", "depth", "labels")}
        for file in files.values():
            if file is not None and not file.is_file():
                raise RecordingError(f"{file}: not found, though recording.json names it")
        if files["image"] is None:
            raise RecordingError(f"{folder / 'recording.json'}: frame {index} of scene {row['name']!r} lacks the field 'image'")
        things = tuple(Thing(o["label"], o["noun"], o["color"], tuple(o["synonyms"]), tuple(o["box"]))
                       for o in item.get("objects") or ())  # fmt: skip
        intrinsics = tuple(item["intrinsics"]) if item.get("intrinsics") else None
        frames.append(RecordedFrame(row["name"], index, files["image"], files["depth"], files["labels"], intrinsics, things))
    return RecordedScene(row["name"], row.get("kind", "simulated"), row.get("credit", ""), tuple(frames))

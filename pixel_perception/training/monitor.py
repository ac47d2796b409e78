"""What one sees of a run: a progress bar, TensorBoard, a log in JSON lines, and pictures of predictions."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from pixel_perception.drawing import band
from pixel_perception.training.config import TrainConfig
from pixel_perception.training.lesson import Picture
from pixel_perception.training.state import Progress

GAP = 6
"""Pixels between the pictures of a row."""
LEAST = 256
"""Width in pixels to which small images are enlarged, so that words fit."""


class Monitor:
    """Writes to RUN/tensorboard, RUN/log.jsonl and RUN/pictures; does nothing in any process but the first."""

    def __init__(self, config: TrainConfig, folder: Path, progress: Progress, on: bool):
        self.config, self.folder, self.on = config, folder, on
        self.bar = tqdm(disable=not on, dynamic_ncols=True, **_bar(config, progress))
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=progress.step or None) if on else None
        self._shown: dict[str, float] = {}
        self._since, self._samples = time.monotonic(), progress.samples

    def step(self, progress: Progress, losses: Mapping[str, float]) -> None:
        """Move the bar; losses are shown as means that forget slowly."""
        for name, value in losses.items():
            self._shown[name] = 0.95 * self._shown.get(name, value) + 0.05 * value
        self.bar.n = progress.step if self.config.schedule.steps else round(progress.minutes, 1)
        self.bar.set_postfix_str("  ".join(f"{name} {value:.3f}" for name, value in self._shown.items()))

    def log(self, progress: Progress, losses: Mapping[str, float], rate: float, norm: float) -> None:
        """One row of scalars: losses, the highest learning rate, the gradient's norm before clipping, and images per second."""
        if self.writer is None:
            return
        now = time.monotonic()
        speed = (progress.samples - self._samples) / max(now - self._since, 1e-6)
        self._since, self._samples = now, progress.samples
        scalars = {f"loss/{k}": v for k, v in losses.items()}
        scalars |= {"rate": rate, "gradient_norm": norm, "images_per_second": speed}
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, progress.step)
        row = {"step": progress.step, "samples": progress.samples, "minutes": round(progress.minutes, 2), **scalars}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")

    def show(self, progress: Progress, pictures: Sequence[Picture]) -> None:
        """A sheet with a row for each sample: input, target and prediction, with the words below."""
        if self.writer is None or not pictures:
            return
        sheet = stack([row(picture) for picture in pictures])
        path = self.folder / "pictures" / f"step-{progress.step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(sheet).save(path)
        self.writer.add_image("predictions", sheet, progress.step, dataformats="HWC")

    def say(self, sentence: str) -> None:
        """A sentence above the bar."""
        if self.on:
            self.bar.write(sentence)

    def close(self) -> None:
        """Finish bar and files."""
        self.bar.close()
        if self.writer is not None:
            self.writer.close()


def row(picture: Picture) -> np.ndarray:
    """Input, target and prediction side by side, and a band with question, wanted and said words."""
    images = [enlarged(image) for image in (picture.image, picture.target, picture.prediction)]
    gap = np.full((images[0].shape[0], GAP, 3), 255, np.uint8)
    across = np.concatenate([images[0], gap, images[1], gap, images[2]], 1)
    texts = {"asked": picture.asked, "target": picture.wanted, "predicted": picture.said}
    lines = [f"{title}: {text}" for title, text in texts.items() if text]
    return np.concatenate([across, band(lines or ["input, target, prediction"], across.shape[1])])


def enlarged(image: np.ndarray) -> np.ndarray:
    """At least `LEAST` pixels wide, by whole factors so that pixels stay square."""
    factor = -(-LEAST // image.shape[1])
    return np.repeat(np.repeat(image, factor, 0), factor, 1)


def stack(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of any width below each other, on white."""
    width = max(r.shape[1] for r in rows)
    return np.concatenate([np.pad(r, ((0, GAP), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows])


def _bar(config: TrainConfig, progress: Progress) -> dict[str, Any]:
    if config.schedule.steps:
        return {"total": config.schedule.steps, "initial": progress.step, "unit": "step"}
    # The rest of a time budget is its own estimate.
    form = "{l_bar}{bar}| {n:.1f}/{total} min [{postfix}]"
    return {"total": config.schedule.minutes, "initial": round(progress.minutes, 1), "unit": "min", "bar_format": form}

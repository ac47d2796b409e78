"""The compact model's lessons: rendered views instead of data sets, and the time budget leads its teacher away."""

from __future__ import annotations

import importlib
import random
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from pixel_perception.drawing import COLORS, paint
from pixel_perception.simulation.catalog import Catalog
from pixel_perception.simulation.dataset import Record, load
from pixel_perception.simulation.phrases import Vocabulary
from pixel_perception.training.config import ConfigError, TrainConfig
from pixel_perception.training.course import Course
from pixel_perception.training.lesson import Lesson
from pixel_perception.training.processes import Processes
from pixel_perception.training.tasks.sample import TaskError
from pixel_perception.writing import replacing_file

Prepare = Callable[[Sequence[Record], random.Random, float], dict[str, Any]]
STAGES = {"pixels": "pixel_stage", "language": "language_stage"}
CELL = 4
"""Pixels per cell of the masks."""


class CompactLesson(Lesson):
    """One of the two stages: weighted losses of a batch of views."""

    borrowed = ("model.language.",)
    """The base language model; its LoRA learns and is saved."""

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Weighted losses by name, and their sum "total"."""
        parts = self.parts(batch)
        return parts | {"total": sum(parts.values(), torch.zeros(()))}

    @abstractmethod
    def parts(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Weighted losses by name."""

    def finish(self, weights: dict[str, Tensor], path: Path) -> None:
        """weights.safetensors: everything but the base language model."""
        with replacing_file(path) as partial:
            save_file(weights, partial)


class Views:
    """Micro-batches of rendered views; which ones depends on the seed, the process and how many came before."""

    def __init__(self, records: Sequence[Record], prepare: Prepare, micro: int, seed: int, rank: int):
        if len(records) < micro:
            raise ConfigError(f"batch.micro: expected at most the {len(records)} views that there are, found {micro}")
        self.records, self.prepare, self.micro, self.seed, self.rank, self._taken = records, prepare, micro, seed, rank, 0

    def next(self, done: float) -> dict[str, Any]:
        """`done` is the share of the budget that is spent."""
        rng = random.Random(f"{self.seed}/{self.rank}/{self._taken}")
        self._taken += 1
        return self.prepare(rng.sample(self.records, self.micro), rng, done)

    def state(self) -> dict[str, Any]:
        """How many were taken, of how many views."""
        return {"seed": self.seed, "taken": self._taken, "views": len(self.records)}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Raises TaskError where seed or views are not those of the state."""
        for key, now in (("seed", self.seed), ("views", len(self.records))):
            if state.get(key) != now:
                raise TaskError("views", f"the saved state has {key} {state.get(key)} and this run {now}: not the same run")
        self._taken = int(state["taken"])


def open_course(config: TrainConfig, paths: Mapping[str, Path], processes: Processes) -> Course:
    """A stage with its views; `paths` may name "views" and "assets". Raises ConfigError where one of them is missing."""
    assert config.compact is not None
    if extra := paths.keys() - {"views", "assets"}:
        raise ConfigError(f"--data {min(extra)}: expected views=PATH and assets=PATH for the compact model")
    places = {name: str(paths.get(name, getattr(config.compact, name))) for name in ("views", "assets")}
    for name, place in places.items():
        if not place or not Path(place).is_dir():
            raise ConfigError(f"compact.{name}: expected a folder (--data {name}=PATH), found {place or 'none'}")
    vocabulary = Vocabulary.of(Catalog.open(places["assets"]))
    records = load(places["views"])
    if not records:
        raise ConfigError(f"compact.views: expected rendered views in {places['views']} (pixel-perception simulate), found none")
    stage = importlib.import_module(f"pixel_perception.training.{STAGES[config.compact.stage]}")
    lesson, prepare = stage.build(vocabulary, config.start)
    return course(config, lesson, prepare, records, processes)


def course(config: TrainConfig, lesson: CompactLesson, prepare: Prepare, records: Sequence[Record], processes: Processes) -> Course:
    """What the loop needs, from a stage's parts."""

    def view(step: int) -> dict[str, Any]:
        rng = random.Random(f"{config.seed}/look/{step}")
        return prepare(rng.sample(records, min(config.watch.samples, len(records))), rng, 1.0)

    return Course(lesson, Views(records, prepare, config.batch.micro, config.seed, processes.rank), view)


def tinted(pixels: np.ndarray, masks: Sequence[Tensor], numbers: Sequence[int]) -> np.ndarray:
    """The image (H, W, 3) with masks (H / 4, W / 4) in 0..1 painted in, each in the colour of its number."""
    out = np.ascontiguousarray(pixels).copy()
    for mask, number in zip(masks, numbers, strict=True):
        bits = (mask > 0.5).cpu().numpy().repeat(CELL, 0).repeat(CELL, 1)
        paint(out, bits, (0, 0), COLORS[number % len(COLORS)])
    return out


def listed(texts: Sequence[str], numbers: Sequence[int]) -> str:
    """ "[1] red mug, [3] cups" of those texts that the numbers (from 0) mean."""
    return ", ".join(f"[{number + 1}] {texts[number]}" for number in numbers) or "nothing"

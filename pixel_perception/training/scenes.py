"""Rendered scenes as tensors: images, masks and boxes for the losses."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pixel_perception.simulation.dataset import Record
from pixel_perception.simulation.scene import SceneObject

FILL = 127
"""Grey of letterbox padding."""


class Scene:
    """One view in memory, perhaps mirrored or shrunk into a corner (as letterboxing does to other aspect ratios)."""

    def __init__(self, record: Record, rng: random.Random | None = None):
        """Without `rng` the view is left as it is."""
        image, labels, objects = record.image(), record.labels(), record.objects
        height, width = labels.shape
        if rng and rng.random() < 0.5:
            image, labels = image[:, ::-1], labels[:, ::-1]
            objects = tuple(replace(o, box=(width - o.box[2], o.box[1], width - o.box[0], o.box[3])) for o in objects)
        self.valid = (1.0, 1.0)
        if rng and rng.random() < 0.12:
            image, labels, objects = self._shrink(image, labels, objects, rng.uniform(0.6, 0.95))
        self.image, self.labels = np.ascontiguousarray(image), np.ascontiguousarray(labels)
        self.objects: tuple[SceneObject, ...] = objects
        self.size = (width, height)
        self._masks: dict[tuple[int, ...], Tensor] = {}

    def _shrink(self, image, labels, objects, factor):
        height, width = labels.shape
        size = (round(width * factor), round(height * factor))
        small, marks = np.full_like(image, FILL), np.zeros_like(labels)
        small[: size[1], : size[0]] = Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.BILINEAR)
        marks[: size[1], : size[0]] = Image.fromarray(np.ascontiguousarray(labels)).resize(size, Image.NEAREST)
        self.valid = (size[0] / width, size[1] / height)
        return small, marks, tuple(replace(o, box=tuple(v * factor for v in o.box)) for o in objects)

    def mask(self, labels: tuple[int, ...]) -> Tensor:
        """(H / 4, W / 4): the share of each stride-4 cell that objects with these labels cover."""
        if labels not in self._masks:
            height, width = self.labels.shape
            hit = np.isin(self.labels, labels) if labels else np.zeros_like(self.labels, bool)
            self._masks[labels] = torch.from_numpy(hit.reshape(height // 4, 4, width // 4, 4).mean((1, 3), dtype=np.float32))
        return self._masks[labels]

    def box(self, thing: SceneObject) -> list[float]:
        """Normalised x0, y0, x1, y1."""
        w, h = self.size
        x0, y0, x1, y1 = thing.box
        return [x0 / w, y0 / h, x1 / w, y1 / h]

    def by_label(self, label: int) -> SceneObject:
        """The object with this label."""
        return next(o for o in self.objects if o.label == label)


def images(scenes: list[Scene]) -> Tensor:
    """(B, H, W, 3) uint8."""
    return torch.from_numpy(np.stack([s.image for s in scenes]))


def centre_targets(scenes: list[Scene], height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Targets of the proposal head: heat (B, h, w) with 1 at centres, boxes (B, h, w, 4), and where boxes count (B, h, w)."""
    count = len(scenes)
    heat, near = torch.zeros(count, height, width), torch.zeros(count, height, width, dtype=torch.bool)
    boxes = torch.zeros(count, height, width, 4)
    ys, xs = torch.arange(height)[:, None].float(), torch.arange(width)[None].float()
    for b, scene in enumerate(scenes):
        for thing in sorted(scene.objects, key=lambda o: -o.area):  # small objects paint over large ones
            box = torch.tensor(scene.box(thing))
            cx, cy = int((box[0] + box[2]) / 2 * width), int((box[1] + box[3]) / 2 * height)
            sx, sy = (box[2] - box[0]) * width / 6 + 0.6, (box[3] - box[1]) * height / 6 + 0.6
            blob = torch.exp(-(((xs - cx) / sx) ** 2 + ((ys - cy) / sy) ** 2) / 2)
            heat[b] = torch.maximum(heat[b], blob)
            heat[b, min(cy, height - 1), min(cx, width - 1)] = 1
            spot = (xs - cx).abs().le(1) & (ys - cy).abs().le(1)
            near[b] |= spot
            boxes[b][spot] = box
    return heat, boxes, near

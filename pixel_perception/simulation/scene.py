"""What a rendered view holds: plain data that needs no simulator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SceneObject:
    """One visible object. `box` is (x0, y0, x1, y1) in pixels, edges on pixel borders."""

    label: int
    id: str
    noun: str
    color: str
    synonyms: tuple[str, ...]
    box: tuple[int, int, int, int]
    area: int
    position: tuple[float, float, float]

    @property
    def name(self) -> str:
        """Colour and noun, as a person would say it ("red mug", but "orange" for an orange)."""
        return self.noun if self.noun == self.color else f"{self.color} {self.noun}"

    @property
    def words(self) -> set[str]:
        """Every noun phrase that names this kind of object."""
        return {self.noun, *self.synonyms}


@dataclass(frozen=True)
class View:
    """One rendered image with its ground truth."""

    rgb: np.ndarray
    """(H, W, 3) uint8."""
    labels: np.ndarray
    """(H, W) uint8: 0 background, k the object with `label` k."""
    depth: np.ndarray | None
    """(H, W) float32 metres along the optical axis."""
    intrinsics: np.ndarray
    """(3, 3) pinhole matrix in pixels."""
    world_from_camera: np.ndarray
    """(4, 4); camera axes x right, y down, z forward."""
    objects: tuple[SceneObject, ...]

"""How alike two backends compute."""

from __future__ import annotations

import numpy as np


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of vectors (..., n) twice -> (...) float64: 1 for two zeros, 0 where either is not finite."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    sizes = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where(np.minimum(*sizes) > 0, (a * b).sum(-1) / (sizes[0] * sizes[1]), sizes[0] == sizes[1])
    return np.where(np.isfinite(sizes).all(0), found, 0.0)

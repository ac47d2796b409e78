"""The pixel side of a bundle: features of a frame, and masks from queries."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pixel_perception.bundle import Bundle
from pixel_perception.errors import PerceptionError
from pixel_perception.geometry import Letterbox
from pixel_perception.runtime.session import Backend, Session


class Encoded:
    """A frame as the network sees it. What is derived from it (proposals, the language prefix) is made once, when it is first
    needed, and kept; several threads may use it at once."""

    def __init__(self, letterbox: Letterbox, features: dict[str, np.ndarray], seconds: float) -> None:
        """`features`: outputs of the image encoder by name, each (1, ...)."""
        self.letterbox = letterbox
        self.features = features
        self.seconds = seconds
        """What encoding took."""
        self._lock = threading.RLock()
        self._made: dict[str, Any] = {}

    @property
    def image_size(self) -> tuple[int, int]:
        """(width, height) of the source image."""
        return self.letterbox.width, self.letterbox.height

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """The value called `name`, made by the first who asks."""
        with self._lock:
            if name not in self._made:
                self._made[name] = make()
            return self._made[name]


class Vision(ABC):
    """A bundle's vision graphs. Its methods may be called from several threads at once.

    Each family of models has its own. One with the tasks CAPTION_REGION and CAPTION_DENSE has besides `regions` and `objects`
    (see `compact.CompactVision`).
    """

    graphs: Mapping[str, tuple[set[str], set[str]]]
    """Inputs and outputs of each graph."""
    one_piece: bool
    """Whether a mask shows one thing, so that small parts far from it are noise."""
    lasting: bool = True
    """Whether a target's queries find it in other frames than the one that they were made for."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        """Raises PerceptionError INVALID_BUNDLE naming the file that is not as expected."""
        self._image = bundle.manifest.image
        self._graphs: dict[str, Session] = {}
        for name, (inputs, outputs) in self.graphs.items():
            session = backend.session(bundle.graph(name))
            if set(session.inputs) != inputs or not outputs <= set(session.outputs):
                raise PerceptionError("INVALID_BUNDLE", f"{bundle.graph(name)}: expected inputs {', '.join(sorted(inputs))} and outputs "
                                      f"{', '.join(sorted(outputs))}, found {', '.join(session.inputs)} and {', '.join(session.outputs)}.")
            self._graphs[name] = session

    def encode(self, frame: np.ndarray) -> Encoded:
        """Features of a frame (H, W, 3) uint8 RGB."""
        return self.encode_all([frame])[0]

    def encode_all(self, frames: Sequence[np.ndarray]) -> list[Encoded]:
        """Features of frames of any sizes, as one batch."""
        started = time.perf_counter()
        image = self._image
        letterboxes = [Letterbox(f.shape[1], f.shape[0], image.width, image.height, image.fill) for f in frames]
        pictures = np.stack([letterbox.image(frame) for letterbox, frame in zip(letterboxes, frames, strict=True)])
        features = self._graphs["image_encoder"].run({"image": pictures} | self._beside(letterboxes))
        seconds = time.perf_counter() - started
        return [Encoded(letterbox, {name: value[i : i + 1] for name, value in features.items()}, seconds)
                for i, letterbox in enumerate(letterboxes)]  # fmt: skip

    def _beside(self, letterboxes: Sequence[Letterbox]) -> dict[str, np.ndarray]:
        """What the image encoder reads beside the network frames."""
        return {}

    @abstractmethod
    def visual(self, encoded: Encoded) -> tuple[np.ndarray, np.ndarray | None]:
        """What the language model reads of a frame: tokens (n, hidden), and which of them (n,) bool show the image where some are
        padding."""

    @abstractmethod
    def fuse(self, states: np.ndarray) -> np.ndarray:
        """Queries (T, ...) of the hidden states at codebook runs (T, length of the run, hidden)."""

    @abstractmethod
    def decode(self, encoded: Encoded, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Mask logits (T, rows, columns) of the whole frame, and presence (T,) in 0..1 where the model tells it, of queries."""

    def split(self, encoded: Encoded, quantity: str, logits: np.ndarray, threshold: float) -> list[np.ndarray]:
        """The logits of each instance that a target's mask logits (rows, columns) show."""
        return [logits]

    def boxes(self, encoded: Encoded, queries: np.ndarray) -> np.ndarray | None:
        """Normalised boxes (T, 4) of the targets of queries, where the model tells them apart from masks."""
        return None

    def places(self, encoded: Encoded, states: np.ndarray) -> np.ndarray | None:
        """Two normalised points x0, y0, x1, y1 (N, 4) for each hidden state (N, hidden); None where the model has no such head."""
        return None

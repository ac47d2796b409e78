"""The pixel side of a bundle: features of a frame, proposals, region prompts, and masks from queries."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pixel_perception.bundle import Bundle
from pixel_perception.errors import PerceptionError
from pixel_perception.geometry import Letterbox
from pixel_perception.runtime.session import Backend, Session

_GRAPHS = {
    "image_encoder": ({"image"}, {"features_16", "features_8", "mask_features"}),
    "proposals": ({"features_16", "features_8"}, {"boxes", "scores"}),
    "prompt_feature_extractor": ({"features_16", "features_8", "boxes"}, {"visual_tokens", "object_queries"}),
    "token_fusion": ({"hidden_states"}, {"queries"}),
    "pixel_decoder": ({"features_16", "features_8", "mask_features", "queries"}, {"mask_logits", "presence"}),
    "location_head": ({"hidden_states"}, {"points"}),
}
"""Inputs and outputs of each graph."""


class Encoded:
    """A frame as the network sees it. What is derived from it (proposals, the language prefix) is made once, when it is first
    needed, and kept; several threads may use it at once."""

    def __init__(self, letterbox: Letterbox, features: dict[str, np.ndarray], seconds: float) -> None:
        """`features`: features_16 (1, 128, 18, 24), features_8 (1, 128, 36, 48), mask_features (1, 16, 72, 96)."""
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


@dataclass(frozen=True, eq=False)
class Objects:
    """What the frame seems to hold, from left to right."""

    boxes: np.ndarray
    """(P, 4) float32, normalised."""
    scores: np.ndarray
    """(P,) in 0..1."""
    whole: np.ndarray
    """(3, hidden): visual tokens of the whole image."""
    tokens: np.ndarray
    """(P, 3, hidden): visual tokens of each proposal."""
    queries: np.ndarray
    """(P, 2, 128): the pixel decoder's queries of each proposal."""


class Vision:
    """A bundle's vision graphs. Its methods may be called from several threads at once."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        """Raises PerceptionError INVALID_BUNDLE naming the file that is not as expected."""
        self._image, self._least = bundle.manifest.image, bundle.manifest.thresholds.proposal
        self._graphs: dict[str, Session] = {}
        for name, (inputs, outputs) in _GRAPHS.items():
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
        features = self._graphs["image_encoder"].run({"image": pictures})
        seconds = time.perf_counter() - started
        return [Encoded(letterbox, {name: value[i : i + 1] for name, value in features.items()}, seconds)
                for i, letterbox in enumerate(letterboxes)]  # fmt: skip

    def objects(self, encoded: Encoded) -> Objects:
        """The proposals that score at least the bundle's threshold, sorted by the x of their centres, and the whole image."""
        return encoded.once("objects", lambda: self._objects(encoded))

    def _objects(self, encoded: Encoded) -> Objects:
        found = self._graphs["proposals"].run(self._pick(encoded, "features_16", "features_8"))
        boxes, scores = found["boxes"][0], found["scores"][0]
        likely = np.flatnonzero(scores >= self._least)
        order = likely[np.argsort(boxes[likely, 0] + boxes[likely, 2], kind="stable")]
        tokens, queries = self.regions(encoded, np.concatenate((encoded.letterbox.whole[None], boxes[order])))
        return Objects(boxes[order], scores[order], tokens[0], tokens[1:], queries[1:])

    def regions(self, encoded: Encoded, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Visual tokens (R, 3, hidden) and object queries (R, 2, 128) of boxes (R, 4), normalised."""
        feeds = self._pick(encoded, "features_16", "features_8") | {"boxes": np.ascontiguousarray(boxes[None], np.float32)}
        out = self._graphs["prompt_feature_extractor"].run(feeds)
        return out["visual_tokens"][0], out["object_queries"][0]

    def fuse(self, states: np.ndarray) -> np.ndarray:
        """Queries (T, 2, 128) of the hidden states at codebook runs (T, 4, hidden)."""
        return self._graphs["token_fusion"].run({"hidden_states": np.ascontiguousarray(states, np.float32)})["queries"]

    def decode(self, encoded: Encoded, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mask logits (T, 72, 96) and presence (T,) in 0..1 of queries (T, 2, 128)."""
        feeds = self._pick(encoded, "features_16", "features_8", "mask_features")
        out = self._graphs["pixel_decoder"].run(feeds | {"queries": np.ascontiguousarray(queries[None], np.float32)})
        return out["mask_logits"][0], 1.0 / (1.0 + np.exp(-out["presence"][0].astype(np.float64)))

    def object_masks(self, encoded: Encoded) -> np.ndarray:
        """Mask logits (P, 72, 96) of the proposals, in the order of `objects`."""

        def make() -> np.ndarray:
            queries = self.objects(encoded).queries
            return self.decode(encoded, queries)[0] if len(queries) else np.zeros((0, 1, 1), np.float32)

        return encoded.once("object_masks", make)

    def places(self, states: np.ndarray) -> np.ndarray:
        """Two normalised points x0, y0, x1, y1 (N, 4) for each hidden state (N, hidden)."""
        return self._graphs["location_head"].run({"hidden_states": np.ascontiguousarray(states, np.float32)})["points"]

    @staticmethod
    def _pick(encoded: Encoded, *names: str) -> dict[str, np.ndarray]:
        return {name: encoded.features[name] for name in names}

"""PixelLLM's pixel side: features of two backbones, visual tokens of regions, objects, places of words, and masks of boxes.

A target is known by the language model's states at the words that name it: they hold its box, and what corrects the mask in it.
Both belong to the frame that the words were read about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pixel_perception.boxes import iou_matrix, suppress
from pixel_perception.bundle import Bundle
from pixel_perception.geometry import Letterbox
from pixel_perception.runtime.session import Backend
from pixel_perception.runtime.vision import Encoded, Vision

TOGETHER = 32
"""So many regions are looked into at once: each needs the whole feature map for itself."""
LEVELS = tuple(f"level_{stride}" for stride in (8, 16, 32, 64, 128))


@dataclass(frozen=True, eq=False)
class Objects:
    """All objects of a frame, most certain first: boxes (N, 4), normalised, and scores (N,) in 0..1."""

    boxes: np.ndarray
    scores: np.ndarray


class PixelLLMVision(Vision):
    """Features of a frame: joined (1, C, h, w) of both backbones, spatial (1, D, h', w') for masks."""

    graphs = {
        "image_encoder": ({"image", "valid"}, {"joined", "spatial"}),
        "prompt_feature_extractor": ({"joined", "boxes"}, {"extracted", "projected"}),
    }
    parts = {
        "proposals": ({"joined"}, {"boxes", "scores", *LEVELS}),
        "second_stage": ({"boxes", "scores", *LEVELS}, {"refined", "judged"}),
        "location_head": ({"hidden_states"}, {"points"}),
    }
    """Graphs that a model may lack, and with them tasks."""
    one_piece = False
    lasting = False

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        """See `Vision`."""
        self.graphs = self.graphs | {name: part for name, part in self.parts.items() if name in bundle.manifest.graphs}
        super().__init__(bundle, backend)
        self._detector, self._least = bundle.manifest.detector, bundle.manifest.thresholds.proposal
        self._masks = backend.session(bundle.graph("mask_decoder")) if "mask_decoder" in bundle.manifest.graphs else None

    def _beside(self, letterboxes: Sequence[Letterbox]) -> dict[str, np.ndarray]:
        return {"valid": np.array([letterbox.valid for letterbox in letterboxes], np.int64)}

    def visual(self, encoded: Encoded) -> tuple[np.ndarray, None]:
        """See `Vision.visual`: tokens of the whole image."""
        return self._whole(encoded)["projected"][0, 0], None

    def _whole(self, encoded: Encoded) -> dict[str, np.ndarray]:
        return encoded.once("whole", lambda: self._extract(encoded, encoded.letterbox.whole[None]))

    def _extract(self, encoded: Encoded, boxes: np.ndarray) -> dict[str, np.ndarray]:
        """Visual tokens (1, R, n, channels) of boxes (R, 4), normalised."""
        pixels = np.asarray(boxes, np.float32)[None] * np.float32(self._image.width)
        return self._graphs["prompt_feature_extractor"].run({"joined": encoded.features["joined"], "boxes": pixels})

    def regions(self, encoded: Encoded, boxes: np.ndarray) -> tuple[np.ndarray, None]:
        """Visual tokens (R, n, hidden) of boxes (R, 4), normalised."""
        found = [self._extract(encoded, boxes[i : i + TOGETHER])["projected"][0] for i in range(0, len(boxes), TOGETHER)]
        return np.concatenate(found), None

    def objects(self, encoded: Encoded) -> Objects:
        """What the detector finds; nothing where there is none."""
        if "proposals" not in self._graphs:
            return Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
        return encoded.once("objects", lambda: self._detect(encoded))

    def _detect(self, encoded: Encoded) -> Objects:
        """The best proposals, those that overlap suppressed, looked at again, and suppressed again (`models.pixelllm.proposals`)."""
        limits, side = self._detector, np.float32(self._image.width)
        first = self._graphs["proposals"].run({"joined": encoded.features["joined"]})
        best = np.argsort(-first["scores"][0], kind="stable")[: limits.peaks]
        boxes, scores = first["boxes"][0, best], first["scores"][0, best]
        kept = distinct(boxes, scores, limits.proposal_overlap)[: limits.proposals]
        feeds = {name: first[name] for name in LEVELS} | {"boxes": np.clip(boxes[kept], 0, side), "scores": scores[kept]}
        second = self._graphs["second_stage"].run(feeds)
        boxes, scores = second["refined"], second["judged"]
        likely = np.flatnonzero(scores > self._least)
        kept = likely[distinct(boxes[likely], scores[likely], limits.overlap)[: limits.objects]]
        return Objects(boxes[kept] / side, scores[kept])

    def fuse(self, states: np.ndarray) -> np.ndarray:
        """States at the words of targets (T, words, hidden), the first and the last token among them: their queries as they are."""
        return states

    def boxes(self, encoded: Encoded, queries: np.ndarray) -> np.ndarray:
        """See `Vision.boxes`: the points of the state that predicts the end of the text (equation 5)."""
        return self._around(encoded, queries[:, -2])

    def decode(self, encoded: Encoded, queries: np.ndarray) -> tuple[np.ndarray, None]:
        """See `Vision.decode`; without a mask decoder there is nothing in a mask."""
        if self._masks is None:
            return np.full((len(queries), 1, 1), -np.inf, np.float32), None
        count, boxes = len(queries), self.boxes(encoded, queries) * np.float32(self._image.width)
        tokens = {name: np.repeat(value, count, 1) for name, value in self._whole(encoded).items()}
        feeds = tokens | {"spatial": encoded.features["spatial"], "boxes": boxes[None].astype(np.float32), "hidden_states": queries[None]}
        return self._masks.run({name: feeds[name] for name in self._masks.inputs})["mask_logits"][0], None

    def places(self, encoded: Encoded, states: np.ndarray) -> np.ndarray | None:
        """See `Vision.places`."""
        return self._around(encoded, states) if "location_head" in self._graphs else None

    def _around(self, encoded: Encoded, states: np.ndarray) -> np.ndarray:
        """Normalised boxes (N, 4) around the two points of each state (N, hidden)."""
        points = self._graphs["location_head"].run({"hidden_states": np.ascontiguousarray(states, np.float32)})["points"]
        # The head's points are fractions of the image, which fills a part of the frame.
        return np.concatenate((points.min(1), points.max(1)), -1) * np.tile(encoded.letterbox.whole[2:], 2)


def distinct(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> np.ndarray:
    """Indices of boxes (N, 4) that survive suppression, best first: one goes when its IoU with a better survivor is `overlap` or
    more, or when it lies at or left of and above the origin (`models.pixelllm.boxes.nms`)."""
    there = np.flatnonzero((boxes > 0).any(-1))
    boxes = boxes[there]
    kept = suppress(iou_matrix(boxes, boxes), scores[there], np.nextafter(overlap, 0))
    return there[np.array(kept, np.int64)]

"""What a model answered to one request, and how right that is: plain numbers that a file can keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pixel_perception.evaluation import metrics, muse
from pixel_perception.evaluation.dense_captions import Regions
from pixel_perception.evaluation.lbm import lbm
from pixel_perception.evaluation.requests import Request
from pixel_perception.training.tasks.rle import to_bits
from pixel_perception.types import Box

MATCHING_SEED = 0
"""Of the points at which masks are compared in the published matching, which draws them anew in every run."""


@dataclass(frozen=True, eq=False)
class Answer:
    """One answer, in pixels of the source image."""

    text: str = ""
    """What was said, with `{seg}` where a mask belongs; a caption."""
    masks: Sequence[np.ndarray] = ()
    """(H, W) each, bool, or logits whose positive pixels are the mask."""
    boxes: Sequence[Box] = ()
    scores: Sequence[float] = ()
    """Of the boxes of dense captioning."""
    captions: Sequence[str] = ()
    presence: float | None = None
    """Probability that what was asked for is there; None from a model that says only yes or no."""
    trace: np.ndarray | None = None
    """(N, 4) places of the words, in order, fractions of the image."""
    first_mask_ms: float | None = None
    """From the request to the first mask (without one: to the answer), the image being encoded."""
    total_ms: float | None = None

    def bits(self) -> list[np.ndarray]:
        """The masks as bool."""
        return [np.asarray(mask) > 0 for mask in self.masks]


def mark(request: Request, answer: Answer, size: tuple[int, int]) -> dict:
    """The answer's figures as plain data. `size` is the image's (width, height); see the functions for what is kept."""
    figures = MARKERS[request.kind](request, answer, size)
    return {"text": answer.text, "first_mask_ms": answer.first_mask_ms, "total_ms": answer.total_ms} | figures


def masks_of(request: Request) -> list[np.ndarray]:
    """The true masks (H, W) bool."""
    return [to_bits(target.mask) for target in request.targets if target.mask is not None]


def overlap(found: Sequence[np.ndarray], true: Sequence[np.ndarray], size: tuple[int, int], ignored: np.ndarray | None = None) -> dict:
    """Everything found against everything meant: intersection and union in pixels, and iou (1 for nothing against nothing)."""
    blank = np.zeros((size[1], size[0]), bool)
    a, b = np.logical_or.reduce([blank, *found]), np.logical_or.reduce([blank, *true])
    if ignored is not None:
        a, b = a & ~ignored, b & ~ignored
    return {"intersection": int(np.count_nonzero(a & b)), "union": int(np.count_nonzero(a | b)), "iou": metrics.mask_iou(a, b)}


def _refer(request: Request, answer: Answer, size: tuple[int, int]) -> dict:
    """found: masks or boxes; overlap of the masks where the truth has one; box_iou with the truth (the best of several)."""
    out: dict = {"found": max(len(answer.masks), len(answer.boxes))}
    if truth := masks_of(request):
        out |= overlap(answer.bits(), truth, size)
    boxes = [target.box for target in request.targets if target.box is not None]
    if boxes:
        out["box_iou"] = max((metrics.box_iou(a, b) for a in answer.boxes[:1] for b in boxes), default=0.0)
    return out


def _list(request: Request, answer: Answer, size: tuple[int, int]) -> dict:
    """masks: the overlap of each expression's mask, in their order; a mask that is missing is empty. extra: pixels of masks
    beyond the expressions, which count in the union."""
    found, truth = answer.bits(), masks_of(request)
    pairs = [overlap(found[i : i + 1], [mask], size) for i, mask in enumerate(truth)]
    return {"found": len(found), "masks": pairs, "extra": sum(int(mask.sum()) for mask in found[len(truth) :])}


def _set(request: Request, answer: Answer, size: tuple[int, int]) -> dict:
    """pairs: [predicted, true, intersection, union] matched by IoU as in the paper; release_pairs: as the code does."""
    truth = masks_of(request)
    out = {"found": len(answer.masks), "pairs": _rows(muse.match(answer.masks, truth)),
           "descriptions": [target.names[0] if target.names else "" for target in request.targets]}  # fmt: skip
    if answer.masks and all(np.asarray(mask).dtype.kind == "f" for mask in answer.masks):
        out["release_pairs"] = _rows(muse.match(answer.masks, truth, "release", muse.RELEASE_POINTS, MATCHING_SEED))
    return out


def _rows(pairs: Sequence[muse.Pair]) -> list[list[int | None]]:
    return [[pair.predicted, pair.true, pair.intersection, pair.union] for pair in pairs]


def _reason(request: Request, answer: Answer, size: tuple[int, int]) -> dict:
    """found; overlap outside of the pixels that are to be ignored."""
    ignored = [to_bits(target.ignore) for target in request.targets if target.ignore is not None]
    nowhere = np.logical_or.reduce(ignored) if ignored else None
    return {"found": len(answer.masks)} | overlap(answer.bits(), masks_of(request), size, nowhere)


def _all(request: Request, answer: Answer, size: tuple[int, int]) -> dict:
    """found, true: masks; overlap of everything; presence; table: IoU (found, true) for cgF1."""
    found, truth = answer.bits(), masks_of(request)
    table = [[round(metrics.mask_iou(p, t), 4) for t in truth] for p in found]
    return {"found": len(found), "true": len(truth), "presence": answer.presence, "table": table} | overlap(found, truth, size)


def _region(request: Request, answer: Answer, size: tuple[int, int]) -> dict:
    """references: the true captions; the caption is the text."""
    return {"references": [caption.text for caption in request.captions]}


def _dense(request: Request, answer: Answer, size: tuple[int, int]) -> dict:
    """predicted and true regions, as lists."""
    return {"predicted": {"boxes": [[round(float(v), 2) for v in box] for box in answer.boxes], "captions": list(answer.captions),
                          "scores": [round(float(s), 6) for s in answer.scores]},
            "true": {"boxes": [list(caption.box) for caption in request.captions],
                     "captions": [caption.text for caption in request.captions]}}  # fmt: skip


def regions(stored: dict) -> Regions:
    """Regions out of what `_dense` keeps."""
    return Regions(np.array(stored["boxes"], np.float64).reshape(-1, 4), stored["captions"], stored.get("scores"))


def _narrate(request: Request, answer: Answer, size: tuple[int, int]) -> dict:
    """lbm and lbm_k1: distance of the traces with k = 0 and 1, 1 for an answer without places; references: the narrative."""
    (narrative,) = request.captions
    true = np.array([word.box for word in narrative.words], np.float64) / (*size, *size)
    out: dict = {"references": [narrative.text]}
    for name, k in (("lbm", 0), ("lbm_k1", 1)):
        out[name] = lbm(answer.trace, true, k) if answer.trace is not None and len(answer.trace) else 1.0
    return out


MARKERS = {"refer": _refer, "list": _list, "set": _set, "reason": _reason, "all": _all, "region": _region, "dense": _dense,
           "caption": _region, "narrate": _narrate}  # fmt: skip

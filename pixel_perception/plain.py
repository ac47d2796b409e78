"""Results as plain JSON values, for `--json`, the demo's results and anything else that leaves Python."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from pixel_perception.masks import run_lengths

if TYPE_CHECKING:
    from pixel_perception.types import Instance, Result


def plain(result: Result, masks: bool = True) -> dict:
    """A result as dicts, lists, strings and numbers. Boxes are [x0, y0, x1, y1] in pixels of the source image.

    A mask is {"roi": [x, y, width, height], "counts": row-major run lengths inside roi, background first}; without
    `masks` only its roi and area are given.
    """
    text = result.text.encode()
    return {
        "query_id": result.query_id,
        "image_size": list(result.image_size),
        "text": result.text,
        "targets": [{"label": t.label, "quantity": t.quantity, "score": _short(t.score), "present": t.present,
                     "span": list(t.span)} for t in result.targets],
        "instances": [_instance(item, masks) for item in result.instances],
        "words": [{"word": text[w.begin : w.end].decode(errors="replace"), "span": [w.begin, w.end], "box": _box(w.box)}
                  for w in result.words],
        "regions": [{"box": _box(r.box), "caption": r.caption, "score": _short(r.score)} for r in result.regions],
        "finish_reason": result.finish_reason,
        "seconds": {name: _short(value) for name, value in asdict(result.timings).items()},
        "model": result.model,
        "digest": result.digest,
    }  # fmt: skip


def _instance(item: Instance, masks: bool) -> dict:
    mask: dict = {"roi": [int(v) for v in item.mask.roi]}
    if masks:
        mask["counts"] = run_lengths(item.mask.bits).tolist()
    return {"label": item.label, "target": item.target, "score": _short(item.score), "box": _box(item.box), "area": item.mask.area,
            "mask_score": _short(item.mask_score), "track_id": item.track_id, "mask": mask}  # fmt: skip


def _box(box) -> list[float]:
    return [round(float(v), 2) for v in box]


def _short(value: float) -> float:
    return round(float(value), 4)

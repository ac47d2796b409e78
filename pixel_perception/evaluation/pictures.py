"""Pictures of answers beside the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from pixel_perception.drawing import COLORS, band, contact_sheet, draw, paint
from pixel_perception.evaluation.answers import Answer, masks_of
from pixel_perception.evaluation.requests import Request
from pixel_perception.types import Region, WordLocation

WIDE = 360
"""Width of each of the two halves, pixels."""


def picture(image: np.ndarray, request: Request, answer: Answer, marks: dict, path: Path) -> None:
    """Write what was answered (left) and what is true (right), with the texts and the figures below."""
    factor = WIDE / image.shape[1]
    found = _drawn(image, factor, answer.bits(), _found(request, answer), answer.text if answer.trace is not None else "",
                   [] if answer.trace is None else answer.trace)  # fmt: skip
    meant = _drawn(image, factor, masks_of(request), _meant(request), *_told(request, image.shape[1::-1]))
    halves = _titled(found, "answer"), _titled(meant, "truth")
    both = np.concatenate([halves[0], np.full((len(halves[0]), 4, 3), 255, np.uint8), halves[1]], 1)
    asked = f"{request.kind}: {request.text}" if request.text else request.kind
    lines = [asked, f"answer: {answer.text}" if answer.text and answer.text != request.text else "", _figures(marks)]
    if request.kind == "caption":
        lines.insert(2, f"truth: {' / '.join(caption.text for caption in request.captions)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate([both, band([text for text in lines if text], both.shape[1])])).save(path, quality=88)


def sheet(folder: Path, columns: int = 3, most: int = 60) -> Path | None:
    """The pictures in `folder/pictures` on one sheet, `folder/sheet.jpg`; None without any."""
    files = sorted((folder / "pictures").glob("*.jpg"))[:most]
    if not files:
        return None
    pictures = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    cell = 2 * WIDE + 10, max(picture.shape[0] for picture in pictures) + 6
    Image.fromarray(contact_sheet(pictures, min(columns, len(pictures)), cell)).save(folder / "sheet.jpg", quality=85)
    return folder / "sheet.jpg"


def _drawn(image: np.ndarray, factor: float, masks: list[np.ndarray], regions: list[Region], text: str = "", trace=()) -> np.ndarray:
    size = round(image.shape[1] * factor), round(image.shape[0] * factor)
    out = np.array(Image.fromarray(image).resize(size))
    for k, mask in enumerate(masks):
        paint(out, np.asarray(Image.fromarray(mask).resize(size)), (0, 0), COLORS[k % len(COLORS)])
    boxes = [Region(tuple(v * factor for v in r.box), r.caption, r.score) for r in regions]
    return draw(out, (), boxes, _placed(text, trace, size), text)


def _titled(picture: np.ndarray, title: str) -> np.ndarray:
    return np.concatenate([band([title], picture.shape[1]), picture])


def _placed(text: str, trace, size: tuple[int, int]) -> list[WordLocation]:
    """The words of a text at the places of a trace (N, 4) in fractions; the first N words."""
    from pixel_perception.training.tasks.localized_narratives import word_spans

    return [WordLocation(*span, tuple(np.array(box) * (*size, *size))) for span, box in zip(word_spans(text), trace, strict=False)]


def _found(request: Request, answer: Answer) -> list[Region]:
    captions = answer.captions or [""] * len(answer.boxes)
    shown = range(len(answer.boxes)) if request.kind != "dense" else np.argsort(-np.array(answer.scores), kind="stable")[:8]
    return [Region(tuple(answer.boxes[i]), captions[i], 1.0) for i in shown]


def _meant(request: Request) -> list[Region]:
    regions = [Region(target.box, "", 1.0) for target in request.targets if target.box is not None]
    return regions + [Region(caption.box, caption.text, 1.0) for caption in request.captions if caption.box is not None][:8]


def _told(request: Request, size: tuple[int, int]) -> tuple[str, list]:
    """The narrative and its true trace."""
    if request.kind != "narrate":
        return "", []
    (caption,) = request.captions
    by_span = {(word.begin, word.end): word.box for word in caption.words}
    return caption.text, [np.array(box) / (*size, *size) for box in by_span.values()]


def _figures(marks: dict) -> str:
    shown = {"iou": "IoU", "box_iou": "box IoU", "lbm": "LBM"}
    parts = [f"{label} {marks[key]:.3f}" for key, label in shown.items() if key in marks]
    if "masks" in marks:
        parts.append("IoU " + ", ".join(f"{m['iou']:.2f}" for m in marks["masks"]))
    if "pairs" in marks:
        parts.append("IoU " + ", ".join(f"{i / u if u else 0:.2f}" for p, t, i, u in marks["pairs"]))
    if marks.get("presence") is not None:
        parts.append(f"presence {marks['presence']:.2f}")
    return " · ".join(parts)

"""Draws results over the image they belong to: masks, boxes, labels, captions and the places of words.

Everything is in pixels of the source image, boxes as (x0, y0, x1, y1). Only numpy and PIL.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from pixel_perception.types import Instance, Region, Result, WordLocation

COLORS = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
    (148, 103, 189), (140, 200, 75), (255, 110, 120),
)  # fmt: skip
"""RGB of instance 0, 1, ... (Okabe and Ito's set, which most colour-blind people can tell apart, and three more)."""
OPACITY = 0.5
INK, PAPER = (20, 20, 20), (255, 255, 255)


def overlay(image: np.ndarray, result: Result, title: str = "", words: bool = False) -> np.ndarray:
    """The image with masks, boxes and captions of `result`, and a band below with `title` and the answer's text.

    image (H, W, 3) uint8 RGB -> (H + band, W, 3) uint8; without title and text there is no band. `words` also puts every
    word at its place, which says much about a narration and little about a single target.
    """
    drawn = draw(image, result.instances, result.regions, result.words if words else (), result.text)
    lines = [line for line in (title, result.text) if line]
    return np.concatenate([drawn, band(lines, image.shape[1])]) if lines else drawn


def draw(image: np.ndarray, instances: Sequence[Instance] = (), regions: Sequence[Region] = (),
         words: Sequence[WordLocation] = (), text: str = "") -> np.ndarray:
    """The image with masks, boxes and labels drawn in; the words of `text` at their places. Same shape and type as `image`."""
    out = np.array(image, np.uint8, copy=True)
    for k, instance in enumerate(instances):
        paint(out, instance.mask.bits, instance.mask.roi[:2], COLORS[k % len(COLORS)])
    picture = Image.fromarray(out)
    pen = ImageDraw.Draw(picture)
    size = max(11, round(image.shape[0] / 34))
    for region in regions:
        pen.rectangle(_inside(region.box, image), outline=PAPER, width=2)
        _tag(pen, region.caption, region.box[:2], INK, PAPER, size)
    for k, instance in enumerate(instances):
        color = COLORS[k % len(COLORS)]
        pen.rectangle(_inside(instance.box, image), outline=color, width=2)
        _tag(pen, f"{instance.label} {instance.score:.2f}", instance.box[:2], INK, color, size)
    for said, x, y in placed_words(words, text, near=2 * size):
        pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=PAPER, outline=INK)
        _tag(pen, said, (x + 3, y), PAPER, (60, 60, 60), size - 2)
    return np.asarray(picture)


def placed_words(words: Sequence[WordLocation], text: str, near: float) -> list[tuple[str, float, float]]:
    """(words, x, y) of what lies where: neighbours in the text whose places are at most `near` pixels apart share a tag.

    A word's place is a box, but a frame per word would hide the image: its centre says enough.
    """
    encoded, out = text.encode(), []
    for word in words:
        said = encoded[word.begin : word.end].decode(errors="replace")
        x, y = (word.box[0] + word.box[2]) / 2, (word.box[1] + word.box[3]) / 2
        if out and abs(out[-1][1] - x) <= near and abs(out[-1][2] - y) <= near:
            before, left, top = out.pop()
            out.append((f"{before} {said}", left, top))
        else:
            out.append((said, x, y))
    return out


def paint(image: np.ndarray, bits: np.ndarray, corner: Sequence[int], color: tuple[int, int, int]) -> None:
    """Tint the pixels of a cropped mask in place, with an opaque outline.

    image (H, W, 3) uint8; bits (h, w) bool, whose top left pixel lies at `corner` (x, y) of the image. What would fall
    outside of the image is left out.
    """
    x, y = int(corner[0]), int(corner[1])
    left, top = max(0, -x), max(0, -y)
    bits = bits[top : max(0, image.shape[0] - y), left : max(0, image.shape[1] - x)]
    if not bits.any():
        return
    part = image[y + top : y + top + bits.shape[0], x + left : x + left + bits.shape[1]]
    part[bits] = ((1 - OPACITY) * part[bits] + OPACITY * np.array(color)).astype(np.uint8)
    padded = np.pad(bits, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    part[bits & ~inner] = color


def band(lines: Sequence[str], width: int) -> np.ndarray:
    """Lines of text, wrapped to `width` pixels, dark on white: (h, width, 3) uint8."""
    font, step = _font(14), 19
    wrapped = [piece for line in lines for piece in wrap(line, font, width - 12)]
    picture = Image.new("RGB", (width, step * len(wrapped) + 8), PAPER)
    pen = ImageDraw.Draw(picture)
    for k, line in enumerate(wrapped):
        pen.text((6, 4 + k * step), line, fill=INK, font=font)
    return np.asarray(picture)


def wrap(line: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Break a line at spaces so that every piece is at most `width` pixels, where its words allow that."""
    pieces = [""]
    for word in line.split():
        longer = f"{pieces[-1]} {word}".strip()
        if pieces[-1] and font.getlength(longer) > width:
            pieces.append(word)
        else:
            pieces[-1] = longer
    return pieces


def contact_sheet(pictures: Sequence[np.ndarray], columns: int, cell: tuple[int, int] = (320, 280)) -> np.ndarray:
    """Pictures (H, W, 3) uint8 of any size in a grid of cells (width, height), shrunk to fit, top left aligned."""
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * cell[0], max(rows, 1) * cell[1]), PAPER)
    for k, picture in enumerate(pictures):
        small = Image.fromarray(picture)
        small.thumbnail((cell[0] - 6, cell[1] - 6))
        sheet.paste(small, (k % columns * cell[0] + 3, k // columns * cell[1] + 3))
    return np.asarray(sheet)


def _inside(box: Sequence[float], image: np.ndarray) -> tuple[float, float, float, float]:
    # PIL draws the far edge on the pixel it names; a box edge on the image's border lies one past the last pixel.
    height, width = image.shape[:2]
    x0, y0 = min(max(box[0], 0), width - 1), min(max(box[1], 0), height - 1)
    return x0, y0, max(x0, min(box[2] - 1, width - 1)), max(y0, min(box[3] - 1, height - 1))


def _tag(pen: ImageDraw.ImageDraw, text: str, corner: Sequence[float], ink: tuple, paper: tuple, size: int) -> None:
    if not text:
        return
    font = _font(size)
    width, height = font.getlength(text) + 6, size + 5
    x = min(max(corner[0], 0), max(0, pen.im.size[0] - width))
    y = corner[1] - height if corner[1] >= height else corner[1]
    y = min(max(y, 0), max(0, pen.im.size[1] - height))
    pen.rectangle((x, y, x + width, y + height), fill=paper)
    pen.text((x + 3, y + 1), text, fill=ink, font=font)


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)

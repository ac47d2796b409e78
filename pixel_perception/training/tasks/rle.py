"""Masks as COCO run lengths, from everything that annotation files hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pixel_perception.training.tasks.fields import Field
from pixel_perception.training.tasks.sample import Rle, TaskError
from pixel_perception.types import Box

if TYPE_CHECKING:
    import numpy as np


def coder():
    """pycocotools.mask, imported when the first mask is read. Raises TaskError where it is not installed."""
    try:
        from pycocotools import mask
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "pycocotools":
            raise
        raise TaskError("pycocotools", "masks of data sets need this Python package; install pixel_perception[train]") from None
    return mask


def from_segmentation(field: Field, width: int, height: int) -> Rle:
    """The union of polygons [[x, y, ...], ...], of one run-length encoding, or of a list of them (as refCLEF has).

    Raises TaskError where they are malformed or belong to an image of another size.
    """
    if isinstance(field.value, dict):
        return _run_lengths(field, width, height)
    parts = field.items()
    if not parts:
        raise field.wrong("polygons or run lengths")
    if isinstance(parts[0].value, dict):
        codes = [_run_lengths(part, width, height) for part in parts]
    else:
        if not isinstance(parts[0].value, list):  # one polygon that is not in a list of its own
            parts = [field]
        codes = coder().frPyObjects([_polygon(part, width, height) for part in parts], height, width)
    return _plain(coder().merge(codes))


def _polygon(field: Field, width: int, height: int) -> list[float]:
    values = [item.number() for item in field.items()]
    if len(values) < 6 or len(values) % 2:
        raise field.wrong("a polygon x, y, ... of three or more points", f"{len(values)} numbers")
    far = 1.5  # annotators click beside the image, but not this many image sizes away
    if max(values[::2]) > far * width or max(values[1::2]) > far * height or min(values) < -0.5 * max(width, height):
        raise field.wrong(f"a polygon inside the {width}x{height} image")
    return values


def _run_lengths(field: Field, width: int, height: int) -> Rle:
    size, counts = field["size"], field["counts"]
    if size.value != [height, width]:
        raise size.wrong(f"[{height}, {width}], the height and width of the image")
    mask = coder()
    try:
        if isinstance(counts.value, list):
            if not all(isinstance(n, int) and n >= 0 for n in counts.value) or sum(counts.value) != width * height:
                raise counts.wrong(f"run lengths that add up to {width * height}")
            return _plain(mask.frPyObjects(field.value, height, width))
        if not isinstance(counts.value, (str, bytes)):
            raise counts.wrong("run lengths")
        code = {"size": size.value, "counts": counts.value.encode() if isinstance(counts.value, str) else counts.value}
        mask.decode(code)  # refuses lengths that do not fit the size
    except TaskError:
        raise
    except (ValueError, TypeError, UnicodeError, MemoryError):
        raise counts.wrong(f"run lengths that add up to {width * height}") from None
    return _plain(code)


def from_bits(bits: np.ndarray) -> Rle:
    """The mask of a bool array (height, width)."""
    import numpy as np

    return _plain(coder().encode(np.asfortranarray(bits, np.uint8)))


def to_bits(code: Rle) -> np.ndarray:
    """(height, width) bool."""
    return coder().decode(code).astype(bool)


def union(codes: list[Rle]) -> Rle:
    """The mask of everything that any of the masks covers."""
    return _plain(coder().merge(codes))


def area(code: Rle) -> int:
    """Pixels covered."""
    return int(coder().area(code))


def box(code: Rle) -> Box:
    """(x0, y0, x1, y1) around a mask, in pixels."""
    x, y, w, h = (float(v) for v in coder().toBbox(code))
    return x, y, x + w, y + h


def _plain(code: Rle) -> Rle:
    counts = code["counts"]
    return {"size": [int(v) for v in code["size"]], "counts": counts.decode() if isinstance(counts, bytes) else counts}

"""Semantic segmentation as one label image per photograph: each class that is there becomes a target."""

from __future__ import annotations

import json
from pathlib import Path

from pixel_perception.training.tasks import rle
from pixel_perception.training.tasks.images import image_size
from pixel_perception.training.tasks.sample import Sample, Source, Target, TaskError


def read(picture: Path, labels: Path, names: dict[int, str], ignored: set[int]) -> Sample:
    """The sample of an image (H, W) and its label map, a PNG of H x W class numbers.

    Raises TaskError for a map of another size, a missing one, and for a number that is neither in `names` nor `ignored`.
    """
    import numpy as np

    size = image_size(picture)
    with _open(labels) as image:
        if image.size != size:
            raise TaskError(labels, f"expected a label map of {size[0]}x{size[1]} as its image {picture.name}, found "
                                    f"{image.size[0]}x{image.size[1]}")  # fmt: skip
        numbers = np.asarray(image)
    if numbers.ndim != 2:
        raise TaskError(labels, "expected one channel of class numbers, found colours")
    targets = []
    for number in np.unique(numbers).tolist():
        if number in ignored:
            continue
        if number not in names:
            where = np.argwhere(numbers == number)[0]
            raise TaskError(labels, f"expected a class of the {len(names)} known ones, found {number}", f"pixel ({where[1]}, {where[0]})")
        mask = rle.from_bits(numbers == number)
        targets.append(Target((names[number],), mask, rle.box(mask)))
    return Sample(picture, size, Source(str(labels), ""), tuple(targets))


def class_names(data_set: str) -> list[str]:
    """The names that the package knows, in the order of the class numbers."""
    return json.loads((Path(__file__).parent / "class_names.json").read_text())[data_set]


def _open(path: Path):
    from PIL import Image

    try:
        return Image.open(path)
    except FileNotFoundError:
        raise TaskError(path, "the label map is missing") from None
    except OSError as error:
        raise TaskError(path, f"expected a PNG label map ({error})") from None

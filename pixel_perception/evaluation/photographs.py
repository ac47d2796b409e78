"""Asks a bundle about photographs with instance masks in the COCO format, and scores the answers like simulated scenes.

A folder holds `annotations.json` (images, annotations, categories) and the image files, beside it or in `images/`.
Category names are the only words of such data sets, so the questions are plain: a category with one object is a single
reference, two of them together are several targets, a category with more objects is all of a kind, a category that the
image lacks is absent.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from pixel_perception.evaluation.scoring import sample, save_picture, timed
from pixel_perception.types import Query

if TYPE_CHECKING:
    from pixel_perception.perception import Perception

MIN_AREA = 0.005
"""Least share of the image that an object must cover to be asked for; smaller ones make their category unclear."""


class PhotographError(ValueError):
    """A folder of photographs, or an entry of its annotations, is not what was expected."""


@dataclass(frozen=True)
class Photograph:
    """One image with its true objects. Masks (H, W) bool, boxes (x0, y0, x1, y1) in pixels."""

    id: int
    file: Path
    size: tuple[int, int]
    objects: tuple[tuple[str, np.ndarray, tuple[float, float, float, float]], ...]
    """(category, mask, box) of every object that may be asked for."""
    unclear: frozenset[str]
    """Categories with a crowd or an object too small to ask for: neither present nor absent."""

    def image(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        return np.asarray(Image.open(self.file).convert("RGB"))


def load(folder: str | Path) -> tuple[list[Photograph], tuple[str, ...]]:
    """The photographs of a folder, in the order of their ids, and all category names.

    Raises PhotographError naming the file and field that is wrong.
    """
    folder = Path(folder)
    path = folder / "annotations.json"
    if not path.is_file():
        raise PhotographError(f"{path}: not found; expected COCO annotations beside the photographs")
    try:
        data = json.loads(path.read_text())
        names = {row["id"]: row["name"] for row in data["categories"]}
        by_image: dict[int, list[dict]] = {}
        for row in data["annotations"]:
            by_image.setdefault(row["image_id"], []).append(row)
        photographs = [_photograph(folder, row, by_image.get(row["id"], []), names) for row in data["images"]]
    except json.JSONDecodeError as error:
        raise PhotographError(f"{path}: not valid JSON ({error})") from None
    except KeyError as error:
        raise PhotographError(f"{path}: lacks the field {error}") from None
    if not photographs:
        raise PhotographError(f"{path}: holds no images")
    return sorted(photographs, key=lambda p: p.id), tuple(sorted(names.values()))


def _photograph(folder: Path, row: dict, annotations: list[dict], names: dict[int, str]) -> Photograph:
    file = next((f for f in (folder / "images" / row["file_name"], folder / row["file_name"]) if f.is_file()), None)
    if file is None:
        raise PhotographError(f"{folder / 'annotations.json'}: names {row['file_name']!r}, which is not in the folder")
    size, objects, unclear = (row["width"], row["height"]), [], set()
    for item in annotations:
        name = names[item["category_id"]]
        mask = None if item.get("iscrowd") else decode(item["segmentation"], size)
        if mask is None or np.count_nonzero(mask) < MIN_AREA * mask.size:
            unclear.add(name)
            continue
        x, y, w, h = item["bbox"]
        objects.append((name, mask, (x, y, x + w, y + h)))
    return Photograph(row["id"], file, size, tuple(objects), frozenset(unclear))


def decode(segmentation: list | dict, size: tuple[int, int]) -> np.ndarray:
    """A COCO segmentation as a mask (height, width) bool: a list of polygons, or uncompressed column-major run lengths.

    `size` is (width, height). Compressed run lengths need pycocotools, which the `bench` extra brings.
    """
    width, height = size
    if isinstance(segmentation, list):
        picture = Image.new("1", size)
        pen = ImageDraw.Draw(picture)
        for polygon in segmentation:
            pen.polygon([(polygon[i] - 0.5, polygon[i + 1] - 0.5) for i in range(0, len(polygon), 2)], fill=1)
        return np.array(picture)
    if isinstance(segmentation["counts"], list):
        bits = np.repeat(np.arange(len(segmentation["counts"])) % 2 == 1, segmentation["counts"])
        return bits.reshape(width, height).T
    from pycocotools import mask

    return mask.decode(segmentation).astype(bool)


def questions(photograph: Photograph, categories: tuple[str, ...], rng: random.Random) -> list[tuple[str, str, list[int]]]:
    """(family, text, indices into `photograph.objects`) of what is asked about one photograph."""
    from pixel_perception.simulation.phrases import plural

    by_name: dict[str, list[int]] = {}
    for k, (name, _, _) in enumerate(photograph.objects):
        if name not in photograph.unclear:
            by_name.setdefault(name, []).append(k)
    alone = sorted(name for name, found in by_name.items() if len(found) == 1)
    asked = [("refer", f"the {name}", by_name[name]) for name in alone]
    if len(alone) > 1:
        a, b = rng.sample(alone, 2)
        asked.append(("several", f"the {a} and the {b}", [*by_name[a], *by_name[b]]))
    asked += [("all_of", f"all {plural(name)}", found) for name, found in sorted(by_name.items()) if len(found) > 1]
    missing = [name for name in categories if name not in by_name and name not in photograph.unclear]
    asked += [("absent", f"the {name}", []) for name in rng.sample(missing, min(2, len(missing)))]
    return asked


def run(perception: Perception, folder: str | Path, limit: int | None = None, threshold: float | None = None,
        pictures: Path | None = None, progress: Callable[[int], None] | None = None) -> list[dict]:
    """Evaluate the first `limit` photographs; rows have the form that `tabletop.scene` describes."""
    photographs, categories = load(folder)
    rows = []
    for photograph in photographs[:limit]:
        row: dict = {"seed": photograph.id, "samples": [], "regions": [], "words": [], "follow": [],
                     "first_mask_ms": None, "all_masks_ms": None}  # fmt: skip
        encoded, image = None, photograph.image()
        for family, text, indices in questions(photograph, categories, random.Random(photograph.id)):
            query = Query(text, score_threshold=threshold)
            if encoded is None:
                encoded, result, row["first_mask_ms"], row["all_masks_ms"] = timed(perception, image, query)
            else:
                result = perception.ask(encoded, query)
            if pictures:
                save_picture(pictures, f"{photograph.id}-{len(row['samples'])}", image, result, f"{family}: {text}")
            masks, boxes = ([photograph.objects[k][field] for k in indices] for field in (1, 2))
            row["samples"].append({"family": family, "form": "name"} | sample(text, result, masks, boxes))
        rows.append(row)
        if progress:
            progress(1)
    return rows

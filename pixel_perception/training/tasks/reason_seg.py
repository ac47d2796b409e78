"""ReasonSeg: one question that needs reasoning for each image, answered by one mask (Lai et al., LISA, 2023).

train/, val/ and test/ hold NAME.jpg beside NAME.json: {"shapes": [{"label": "target" | "ignore" | "flag", "points": [[x, y], ...]}],
"text": [question or phrase], "is_sentence": bool}. explanatory/train.json, where it is there, has [{"image", "query", "outputs"}].
"""

from __future__ import annotations

from pathlib import Path

from pixel_perception.training.tasks import rle
from pixel_perception.training.tasks.fields import Field, read_json
from pixel_perception.training.tasks.images import image_size
from pixel_perception.training.tasks.sample import Rle, Round, Sample, Target, Task, TaskError


def load(folder: Path, split: str, name: str) -> Task:
    """One split ("train", "val", "test"), a sample for each image."""
    base = folder if (folder / split).is_dir() else folder / "ReasonSeg"
    explanations = {}
    reasons = base / "explanatory" / "train.json"
    if split == "train" and reasons.is_file():
        explanations = {item["image"].text(): item["outputs"].text() for item in read_json(reasons).records()}

    def read(picture: Path) -> Sample:
        path = picture.with_suffix(".json")
        if not path.is_file():
            raise TaskError(path, f"is missing; {picture.name} is annotated there")
        # Some of the published files were saved on Windows.
        record = read_json(path, ("utf-8", "cp1252"))
        size = image_size(picture)
        mask, ignore = paint(record["shapes"], size)
        texts = tuple(t.text() for t in record["text"].items())
        if not texts:
            raise record["text"].wrong("one text or more", "none")
        if not isinstance(record["is_sentence"].value, bool):
            raise record["is_sentence"].wrong("true or false")
        box = rle.box(mask)
        if not record["is_sentence"].value:
            return Sample(picture, size, record.source, (Target(texts, mask, box, ignore),))
        target, why = Target((), mask, box, ignore), explanations.get(picture.name, "")
        return Sample(picture, size, record.source, rounds=tuple(Round(text, "", (target,), why) for text in texts))

    return Task(name, split, base / split, sorted((base / split).glob("*.jpg")), read)


def paint(shapes: Field, size: tuple[int, int]) -> tuple[Rle, Rle | None]:
    """(target, ignored pixels or None): polygons painted from large to small, so that an inner one wins.

    Flags are notes of the annotators. Raises TaskError for a broken polygon and where no target pixel is left.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    layers = []
    for shape in shapes.items():
        label = shape["label"].text().lower()
        if label == "flag":
            continue
        picture = Image.new("1", size)
        points = [_point(p) for p in shape["points"].items()]
        if len(points) < 2:
            raise shape["points"].wrong("a polygon of points [x, y]", f"{len(points)} points")
        ImageDraw.Draw(picture).polygon(points, fill=1, outline=1)
        layers.append((np.asarray(picture), "ignore" in label))
    canvas = np.zeros((size[1], size[0]), np.uint8)
    for bits, ignored in sorted(layers, key=lambda layer: -int(layer[0].sum())):
        canvas[bits] = 2 if ignored else 1
    if not (canvas == 1).any():
        raise shapes.wrong(f"a target polygon inside the {size[0]}x{size[1]} image", "none")
    return rle.from_bits(canvas == 1), rle.from_bits(canvas == 2) if (canvas == 2).any() else None


def _point(field: Field) -> tuple[int, int]:
    pair = field.items()
    if len(pair) != 2:
        raise field.wrong("a point [x, y]")
    return int(pair[0].number()), int(pair[1].number())

"""Pascal-Part: parts of objects with masks on the images of VOC 2010 (Chen et al., 2014), as prepared for VLPart.

{train,val}.json in COCO's form with categories "dog:ear"; images in VOCdevkit/VOC2010/JPEGImages.
"""

from __future__ import annotations

from pathlib import Path

from pixel_perception.training.tasks.images import roots
from pixel_perception.training.tasks.paco import from_parts
from pixel_perception.training.tasks.sample import Task, TaskError

IMAGES = ("VOCdevkit/VOC2010/JPEGImages", "VOC2010/JPEGImages", "JPEGImages", "images")


def load(folder: Path, split: str, name: str) -> Task:
    """One split ("train", "val"), a sample for each image and a target for each annotated part."""
    for base in (folder, folder / "pascal_part"):
        if (base / f"{split}.json").is_file():
            return from_parts(base / f"{split}.json", split, name, roots(base, IMAGES))
    raise TaskError(folder / f"{split}.json", "is missing")

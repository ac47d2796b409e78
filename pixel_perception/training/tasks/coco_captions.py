"""COCO captions: five sentences for each image (Chen et al., 2015).

annotations/captions_{train,val}{2017,2014}.json in COCO's form, each annotation a "caption".
"""

from __future__ import annotations

from pathlib import Path

from pixel_perception.training.tasks.coco import CocoFile
from pixel_perception.training.tasks.fields import Field
from pixel_perception.training.tasks.images import locate, roots, sized
from pixel_perception.training.tasks.sample import Caption, Sample, Task, TaskError


def load(folder: Path, split: str, name: str) -> Task:
    """One split ("train", "val"), a sample for each image with its captions."""
    for year in ("2017", "2014"):
        for base in (folder / "annotations", folder):
            path = base / f"captions_{split}{year}.json"
            if path.is_file():
                return _load(path, split, name, roots(folder, [f"{p}{split}{year}" for p in ("", "images/", "coco/")] + ["images"]))
    raise TaskError(folder / "annotations" / f"captions_{split}2017.json", "is missing")


def _load(path: Path, split: str, name: str, places: list[Path]) -> Task:
    file = CocoFile(path)

    def read(image: Field) -> Sample:
        picture = locate(image["file_name"], places)
        texts = [annotation["caption"].text() for annotation in file.of_image[image["id"].key()]]
        return Sample(picture, sized(image, picture), image.source, captions=tuple(Caption(text) for text in texts))

    return Task(name, split, path, file.annotated(), read)

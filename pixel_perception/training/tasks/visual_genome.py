"""Visual Genome regions for dense captioning: boxes with a phrase each (Krishna et al., 2017), as prepared for GRiT.

{train,test}.json in COCO's form, each annotation with a "bbox" and a "caption"; images in VG_100K (and VG_100K_2).
"""

from __future__ import annotations

from pathlib import Path

from pixel_perception.training.tasks.coco import CocoFile
from pixel_perception.training.tasks.fields import Field
from pixel_perception.training.tasks.images import locate, roots, sized
from pixel_perception.training.tasks.sample import Caption, Sample, Task, TaskError

IMAGES = ("VG_100K", "VG_100K_2", "images", "images/VG_100K", "images/VG_100K_2", "vg/images")


def load(folder: Path, split: str, name: str) -> Task:
    """One split ("train", "val", "test"), a sample for each image with a caption for each region."""
    for base in (folder / "annotations", folder):
        if (base / f"{split}.json").is_file():
            return _load(base / f"{split}.json", split, name, roots(folder, IMAGES))
    raise TaskError(folder / "annotations" / f"{split}.json", "is missing")


def _load(path: Path, split: str, name: str, places: list[Path]) -> Task:
    file = CocoFile(path)

    def read(image: Field) -> Sample:
        picture = locate(image["file_name"], places)
        size = sized(image, picture)
        regions = [Caption(a["caption"].text(), a["bbox"].box(*size)) for a in file.of_image[image["id"].key()]]
        return Sample(picture, size, image.source, captions=tuple(regions))

    return Task(name, split, path, file.annotated(), read)

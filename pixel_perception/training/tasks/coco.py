"""Files in COCO's form: {"images": [...], "annotations": [...], "categories": [...]}, tied together by ids."""

from __future__ import annotations

from pathlib import Path

from pixel_perception.training.tasks.fields import Field, read_json
from pixel_perception.training.tasks.rle import box as box_of
from pixel_perception.training.tasks.rle import from_segmentation
from pixel_perception.training.tasks.sample import Rle
from pixel_perception.types import Box


class CocoFile:
    """A file's images and annotations. Raises TaskError for ids that are missing, double or lead nowhere."""

    def __init__(self, path: Path) -> None:
        top = read_json(path)
        self.images = _by_id(top["images"])
        self.annotations = _by_id(top["annotations"])
        self.categories = _by_id(top["categories"]) if top.get("categories") else {}
        self.of_image: dict[int | str, list[Field]] = {key: [] for key in self.images}
        for annotation in self.annotations.values():
            self.of_image[self.image_of(annotation)].append(annotation)

    def image_of(self, record: Field) -> int | str:
        """Id of the image that a record is about."""
        return known(record["image_id"], self.images, "images")

    def category(self, annotation: Field) -> str:
        """Name of an annotation's category."""
        key = known(annotation["category_id"], self.categories, "categories")
        return self.categories[key]["name"].text()

    def annotated(self) -> list[Field]:
        """Records of the images that have annotations, in the order of the file."""
        return [image for key, image in self.images.items() if self.of_image[key]]


def known(field: Field, table: dict, name: str) -> int | str:
    """An id that `table` holds. Raises TaskError."""
    key = field.key()
    if key not in table:
        raise field.wrong(f"the id of one of the {name}")
    return key


def place(annotation: Field, width: int, height: int, need_mask: bool = True) -> tuple[Rle | None, Box | None]:
    """Mask and box of an annotation; the box of the mask where it has none of its own."""
    code = None
    if need_mask or annotation.get("segmentation"):
        code = from_segmentation(annotation["segmentation"], width, height)
    if annotation.get("bbox") or code is None:
        return code, annotation["bbox"].box(width, height)
    return code, box_of(code)


def _by_id(records: Field) -> dict[int | str, Field]:
    out: dict[int | str, Field] = {}
    for record in records.records():
        key = record["id"].key()
        if key in out:
            raise record["id"].wrong("an id that no other record has")
        out[key] = record
    return out

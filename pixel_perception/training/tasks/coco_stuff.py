"""COCO-Stuff: things and stuff as label maps (Caesar et al., 2018).

{train2017,val2017}/NAME.png of stuffthingmaps_trainval2017, whose numbers are the class of labels.txt less one and 255 for
unlabeled; the photographs are COCO's, in a folder of the same name. As in PixelLM, stuff classes with a hyphen
("building-other") are left out: their names say little to anyone.
"""

from __future__ import annotations

from pathlib import Path

from pixel_perception.training.tasks import label_maps
from pixel_perception.training.tasks.fields import Field
from pixel_perception.training.tasks.images import locate, roots
from pixel_perception.training.tasks.sample import Sample, Task, TaskError

UNLABELED = 255


def load(folder: Path, split: str, name: str) -> Task:
    """One split ("train", "val"), a sample for each image and a target for each class in it."""
    year = f"{split}2017"
    places = roots(folder, (f"coco/{year}", f"images/{year}", f"coco/images/{year}", year))
    base = next((folder / sub / year for sub in ("", "cocostuff", "stuffthingmaps_trainval2017", "stuffthingmaps", "annotations")
                 if any((folder / sub / year).glob("*.png"))), folder / year)  # fmt: skip
    listed = class_list(folder)
    names = {number: text for number, text in enumerate(listed) if "-" not in text}
    ignored = {UNLABELED, *(number for number, text in enumerate(listed) if "-" in text)}

    def read(labels: Path) -> Sample:
        picture = locate(Field(f"{labels.stem}.jpg", labels), places)
        return label_maps.read(picture, labels, names, ignored)

    return Task(name, split, base, sorted(base.glob("*.png")), read)


def class_list(folder: Path) -> list[str]:
    """Names by number in the maps: the folder's own labels.txt ("0: unlabeled", "1: person", ...), else the package's."""
    path = folder / "labels.txt"
    if not path.is_file():
        return label_maps.class_names("coco_stuff")
    rows = [line.partition(":")[::2] for line in path.read_text("utf-8").splitlines() if line.strip()]
    if [number.strip() for number, _ in rows] != [str(i) for i in range(len(rows))]:
        raise TaskError(path, 'expected lines "0: unlabeled", "1: person", ... without a gap')
    return [text.strip() for _, text in rows[1:]]

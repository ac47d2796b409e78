"""LVIS-PACO: objects and their parts with masks on COCO's images (Ramanathan et al., PACO, 2023).

annotations/paco_lvis_v1_{train,val}.json in COCO's form. A category is "trash_can" or "mug_(cup):handle", object and part.
"""

from __future__ import annotations

from pathlib import Path

from pixel_perception.training.tasks.coco import CocoFile, place
from pixel_perception.training.tasks.fields import Field
from pixel_perception.training.tasks.images import locate, roots, sized
from pixel_perception.training.tasks.sample import Sample, Target, Task, TaskError

IMAGES = ("coco", "images", "coco/images")


def load(folder: Path, split: str, name: str) -> Task:
    """One split ("train", "val"), a sample for each image and a target for each annotated object or part."""
    file_name = f"paco_lvis_v1_{split}.json"
    for base in (folder / "annotations", folder, folder / "paco" / "annotations"):
        if (base / file_name).is_file():
            return from_parts(base / file_name, split, name, roots(folder, IMAGES))
    raise TaskError(folder / "annotations" / file_name, "is missing")


def from_parts(path: Path, split: str, name: str, places: list[Path]) -> Task:
    """The task of a COCO file whose categories name parts."""
    file = CocoFile(path)
    names = {key: part_names(category["name"]) for key, category in file.categories.items()}

    def read(image: Field) -> Sample:
        picture = locate(image["file_name"], places)
        size, targets = sized(image, picture), []
        for annotation in file.of_image[image["id"].key()]:
            file.category(annotation)  # complains about a category that is not listed
            targets.append(Target(names[annotation["category_id"].key()], *place(annotation, *size)))
        return Sample(picture, size, image.source, tuple(targets))

    return Task(name, split, path, file.annotated(), read)


def part_names(category: Field) -> tuple[str, ...]:
    """ "dog:ear" -> ("dog ear", "the ear of the dog"), of which training draws either; "trash_can" -> ("trash can",)."""
    pieces = [piece.split("_(")[0].replace("_", " ").strip() for piece in category.text().split(":")]
    if len(pieces) > 2 or not all(pieces):
        raise category.wrong('"object" or "object:part"')
    return tuple(pieces) if len(pieces) == 1 else (" ".join(pieces), f"the {pieces[1]} of the {pieces[0]}")

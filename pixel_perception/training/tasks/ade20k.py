"""ADE20K's scene parsing benchmark: 150 classes as label maps (Zhou et al., 2017).

images/{training,validation}/NAME.jpg beside annotations/{training,validation}/NAME.png, whose numbers are 0 for "other" and k for
class k; the layout of ADEChallengeData2016. objectInfo150.txt, where it is there, gives the names (the first synonym counts).
"""

from __future__ import annotations

from pathlib import Path

from pixel_perception.training.tasks import label_maps
from pixel_perception.training.tasks.sample import Task, TaskError

FOLDERS = {"train": "training", "val": "validation"}


def load(folder: Path, split: str, name: str) -> Task:
    """One split ("train", "val"), a sample for each image and a target for each class in it."""
    base = next((b for b in (folder, folder / "ADEChallengeData2016", folder / "ade20k") if (b / "images").is_dir()), folder)
    pictures, maps = base / "images" / FOLDERS[split], base / "annotations" / FOLDERS[split]
    if not maps.is_dir():
        raise TaskError(maps, "is missing; it holds the label maps of the images")
    names = dict(enumerate(class_list(base), start=1))
    return Task(name, split, pictures, sorted(pictures.glob("*.jpg")),
                lambda picture: label_maps.read(picture, maps / f"{picture.stem}.png", names, {0}))


def class_list(folder: Path) -> list[str]:
    """The folder's own names, else those that the package knows."""
    path = folder / "objectInfo150.txt"
    if not path.is_file():
        return label_maps.class_names("ade20k")
    rows = [line.rstrip("\n").split("\t") for line in path.read_text("utf-8").splitlines()[1:] if line.strip()]
    names = [row[-1].split(",")[0].strip() for row in rows]
    if [row[0].strip() for row in rows] != [str(i + 1) for i in range(len(rows))] or not all(names):
        raise TaskError(path, "expected a heading, then lines of five columns: class 1, 2, ..., ratio, two counts, names")
    return names

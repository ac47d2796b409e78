"""refCOCO, refCOCO+, refCOCOg and refCLEF: expressions that refer to one object of an image.

Source: Kazemzadeh et al., ReferItGame (2014); Yu et al., Modeling Context in Referring Expressions (2016); the REFER layout of
their authors (a pickle of references beside COCO's instances), and the JSON forms of `expressions`. In the two papers' files
refCOCOg is split by "umd", the others by "unc". Expressions are lower case.
"""

from __future__ import annotations

import io
import pickle
from collections import defaultdict
from pathlib import Path

from pixel_perception.training.tasks import expressions
from pixel_perception.training.tasks.coco import CocoFile, known, place
from pixel_perception.training.tasks.fields import Field, read_json
from pixel_perception.training.tasks.images import locate, roots, sized
from pixel_perception.training.tasks.sample import Sample, Target, Task, TaskError

IMAGES = ("images/mscoco/images/train2014", "images/train2014", "train2014", "coco/train2014", "coco", "images")
CLEF_IMAGES = ("images/saiapr_tc-12", "saiapr_tc-12", "images")
SPLITTER = {"refcocog": ("umd", "google"), "refclef": ("unc", "berkeley")}
"""Whose split of the references is taken, the papers' first; "unc" for the others."""
PLAIN = {("collections", "OrderedDict"), ("collections", "defaultdict"), *((m, n) for m in ("builtins", "__builtin__")
         for n in ("set", "frozenset", "list", "dict", "tuple", "int", "float", "complex", "bytearray"))}  # fmt: skip


class PlainUnpickler(pickle.Unpickler):
    """Reads containers, strings and numbers, and nothing else.

    A pickle is a program: it may name any function of any installed module and call it, so a data set from the internet could
    run whatever its sender likes. References are plain lists and dicts and need no function, so every name but those of the
    plain containers is refused.
    """

    def find_class(self, module: str, name: str):
        if (module, name) not in PLAIN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only plain lists, dicts, strings and numbers are read")
        return super().find_class(module, name)


def read_references(path: Path) -> Field:
    """The list of references in a REFER pickle, or in the same list as JSON. Raises TaskError."""
    if path.suffix == ".json":
        return read_json(path)
    try:
        # Written by Python 2, whose strings of bytes become text in this encoding.
        return Field(PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load(), path)
    except OSError as error:
        raise TaskError(path, f"cannot be read ({error.strerror})") from None
    except Exception as error:  # a damaged pickle raises whatever its last opcode stumbled over
        raise TaskError(path, f"the pickle is refused: {error}") from None


def load(folder: Path, split: str, name: str, least: int = 1) -> Task:
    """One split ("train", "val", "testA", "testB", "test"), a sample for each image and a target for each object referred to.

    Images with fewer than `least` expressions are left out.
    """
    references, instances = refer_files(folder, name)
    places = roots(folder, CLEF_IMAGES if name == "refclef" else IMAGES)
    if references is not None:
        return _refer(references, instances, places, split, name, least)
    path = json_file(folder, split, name)
    if expressions.is_lists(path, split):
        return expressions.load_lists(name, split, path, places, least)
    return expressions.load_coco(name, split, path, places, least=least)


def refer_files(folder: Path, name: str) -> tuple[Path | None, Path]:
    """(references or None, instances.json) of the REFER layout. Raises TaskError for one without the other."""
    for base in (folder / name, folder):
        for splitter in SPLITTER.get(name, ("unc",)):
            for suffix in (".p", ".json"):
                references = base / f"refs({splitter}){suffix}"
                if references.is_file():
                    if not (base / "instances.json").is_file():
                        raise TaskError(base / "instances.json", f"is missing; {references.name} refers to its annotations")
                    return references, base / "instances.json"
    return None, folder / "instances.json"


def json_file(folder: Path, split: str, name: str) -> Path:
    """The JSON file of a split, by the names that its makers give it. Raises TaskError when there is none."""
    spellings = {name, name.replace("+", "plus"), name.replace("+", "p")}
    by = SPLITTER.get(name, ("unc",))[0]
    wanted = [pattern.format(n=n) for n in sorted(spellings) for pattern in (
        "finetune_{n}_" + split, "{n}_" + f"{by}_{split}", "{n}_" + split, "{n}-" + f"{by}/instances_{split}", "{n}-" + f"{by}/instances",
        "{n}/instances_" + split, "{n}/instances", "{n}/" + split,
    )] + [f"instances_{split}", "instances", split]  # fmt: skip
    for base in (folder, folder / "annotations"):
        for stem in wanted:
            if (base / f"{stem}.json").is_file():
                return base / f"{stem}.json"
    raise TaskError(folder, f"expected refs({by}).p with instances.json, or the {split} split of {name} as JSON, found neither")


def _refer(references: Path, instances: Path, places: list[Path], split: str, name: str, least: int) -> Task:
    file = CocoFile(instances)
    of_image: dict[int | str, list[Field]] = defaultdict(list)
    for reference in read_references(references).items():
        record = Field(reference.value, references, f"references{reference.name}")
        if _belongs(record["split"].text(), split):
            of_image[known(record["image_id"], file.images, "images in instances.json")].append(record)

    def read(records: list[Field]) -> Sample:
        image = file.images[records[0]["image_id"].key()]
        picture = locate(image["file_name"], places)
        size, targets = sized(image, picture), []
        for record in records:
            annotation = file.annotations[known(record["ann_id"], file.annotations, "annotations in instances.json")]
            if file.image_of(annotation) != image["id"].key():
                raise record["ann_id"].wrong(f"an annotation of image {image['id'].key()}")
            sentences = tuple(s["sent"].text().lower() for s in record["sentences"].items())
            if not sentences:
                raise record["sentences"].wrong("one sentence or more", "none")
            targets.append(Target(tuple(dict.fromkeys(sentences)), *place(annotation, *size)))
        return Sample(picture, size, records[0].source, tuple(targets))

    kept = [records for records in of_image.values() if sum(len(r["sentences"].items()) for r in records) >= least]
    return Task(name, split, references, kept, read)


def _belongs(said: str, split: str) -> bool:
    """REFER's rule: testA also holds "testAB", and test every one of them."""
    if split == "test":
        return "test" in said
    if split in ("testA", "testB", "testC"):
        return said.startswith("test") and split[-1] in said[4:]
    return said == split

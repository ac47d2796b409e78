"""Referring expressions as JSON, in the three forms in which they are passed around.

- MDETR and GoldG: COCO's form; an image entry has one `caption`, its annotations the boxes of what the caption (or its
  characters in `tokens_positive`) refers to. The same photograph has one entry for each expression.
- UNINEXT and the like: COCO's form; an image entry, or an annotation, has a list of `expressions`.
- SeqTR and UNINEXT's raw files: {"train": [{"image_id", "width", "height", "bbox", "expressions", "mask"?, "data_source"?}]}.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from pixel_perception.training.tasks.coco import CocoFile, place
from pixel_perception.training.tasks.fields import Field, read_json
from pixel_perception.training.tasks.images import locate, sized
from pixel_perception.training.tasks.rle import from_segmentation
from pixel_perception.training.tasks.sample import Caption, Sample, Target, Task, TaskError


def load_coco(name: str, split: str, path: Path, places: Sequence[Path], captions: bool = False,
              least: int = 1) -> Task:
    """The first two forms, a sample for each photograph with `least` expressions or more.

    `captions`: the image entries' captions are descriptions, to be kept.
    """
    file = CocoFile(path)
    photographs: dict[str, list[Field]] = defaultdict(list)
    for image in file.annotated():
        photographs[image["file_name"].text()].append(image)

    def read(entries: list[Field]) -> Sample:
        picture = locate(entries[0]["file_name"], places)
        size, merged = sized(entries[0], picture), {}
        for image in entries:
            for annotation in file.of_image[image["id"].key()]:
                mask, box = place(annotation, *size, need_mask=False)
                before = merged.get(box)
                said = dict.fromkeys([*(before.names if before else ()), *_names(image, annotation)])
                merged[box] = Target(tuple(said), mask or (before.mask if before else None), box)
        texts = tuple(Caption(image["caption"].text()) for image in entries) if captions else ()
        return Sample(picture, size, entries[0].source, tuple(merged.values()), captions=texts)

    def count(entries: list[Field]) -> int:
        return sum(len(_names(image, a)) for image in entries for a in file.of_image[image["id"].key()])

    kept = [entries for entries in photographs.values() if least <= 1 or count(entries) >= least]
    return Task(name, split, path, kept, read)


def load_lists(name: str, split: str, path: Path, places: Sequence[Path], least: int = 1) -> Task:
    """The third form, a sample for each photograph with `least` expressions or more."""
    top = read_json(path)
    photographs: dict[tuple, list[Field]] = defaultdict(list)
    if top.get(split) is not None:
        for record in top[split].records():
            source = record.get("data_source")
            photographs[source.text() if source else "", record["image_id"].key()].append(record)

    def read(records: list[Field]) -> Sample:
        number = records[0]["image_id"]
        stem = f"{number.value:012d}.jpg" if isinstance(number.value, int) else f"{number.value}.jpg"
        picture = locate(number, places, (f"COCO_train2014_{stem}", f"{number.value}.jpg", stem))
        size = sized(records[0], picture)
        targets = []
        for record in records:
            segmentation = record.get("mask")
            mask = from_segmentation(segmentation, *size) if segmentation else None
            targets.append(Target(_texts(record["expressions"]), mask, record["bbox"].box(*size)))
        return Sample(picture, size, records[0].source, tuple(targets))

    kept = [records for records in photographs.values() if least <= 1 or sum(len(r["expressions"].items()) for r in records) >= least]
    return Task(name, split, path, kept, read)


def is_lists(path: Path, split: str) -> bool:
    """Whether a file is of the third form; a cheap look at its beginning, for these files are large."""
    try:
        with path.open("rb") as file:
            head = file.read(200).decode("utf-8", errors="replace")
    except OSError as error:
        raise TaskError(path, f"cannot be read ({error.strerror})") from None
    return any(head.lstrip("{ \n\r\t").startswith(f'"{key}"') for key in (split, "train", "val", "test", "testA", "testB"))


def _names(image: Field, annotation: Field) -> tuple[str, ...]:
    """What refers to an annotation."""
    for record in (annotation, image):
        for key in ("expressions", "refexp_sent"):
            if record.get(key):
                return _texts(record[key])
    if annotation.get("caption"):
        return (annotation["caption"].text(),)
    caption = image["caption"]
    spans = annotation.get("tokens_positive")
    if not spans or not spans.value:
        return (caption.text(),)
    pieces = []
    for span in spans.items():
        if not (isinstance(span.value, list) and len(span.value) == 2 and all(isinstance(v, int) for v in span.value)
                and 0 <= span.value[0] < span.value[1] <= len(caption.value)):  # fmt: skip
            raise span.wrong(f"[begin, end) inside the caption's {len(caption.value)} characters")
        pieces.append(caption.value[slice(*span.value)])
    return (" ".join(pieces).strip(" .,") or caption.text(),)


def _texts(field: Field) -> tuple[str, ...]:
    texts = tuple(item.text() for item in field.items())
    if not texts:
        raise field.wrong("one expression or more", "none")
    return texts

"""Flickr30k Entities and GoldG: phrases of captions with their boxes (Plummer et al., 2015; Kamath et al., MDETR, 2021).

Either MDETR's JSON (final_flickr_separateGT_{split}.json, and final_mixed_train.json of GoldG, on COCO's and Visual Genome's
images), or UNINEXT's instances.json, or the entities themselves: Sentences/ID.txt with lines like
"[/EN#1/people Two men] wave ." and Annotations/ID.xml with the boxes of each entity, the ids of a split in {split}.txt.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

from pixel_perception.training.tasks import expressions
from pixel_perception.training.tasks.fields import Field
from pixel_perception.training.tasks.images import image_size, locate, roots
from pixel_perception.training.tasks.sample import Caption, Sample, Source, Target, Task, TaskError
from pixel_perception.types import Box, WordLocation

IMAGES = ("flickr30k-images", "flickr30k_images", "flickr30k/flickr30k-images", "train2014", "coco/train2014", "train2017", "VG_100K",
          "VG_100K_2", "GQA/images", "vg/images", "images")  # fmt: skip
FILES = {
    "flickr30k": ("final_flickr_separateGT_{}.json", "final_flickr_mergedGT_{}.json", "flickr30k/instances.json", "instances.json"),
    "goldg": ("final_mixed_{}.json", "final_mixed_{}_no_coco.json", "mixed/instances.json", "instances.json"),
}
MENTION = re.compile(r"\[/EN#([^/\s\]]+)(?:/[^\s\]]*)?\s+([^\]]*)\]")


def load(folder: Path, split: str, name: str) -> Task:
    """One split ("train", "val", "test"), a sample for each photograph: its captions, and a target for each phrase and box."""
    places = roots(folder, IMAGES)
    for pattern in FILES[name]:
        for base in (folder, folder / "annotations"):
            path = base / pattern.format(split)
            if path.is_file():
                if expressions.is_lists(path, split):
                    return expressions.load_lists(name, split, path, places)
                return expressions.load_coco(name, split, path, places, captions=True)
    if name == "flickr30k" and (folder / "Sentences").is_dir():
        return _entities(folder, split, name, places)
    raise TaskError(folder, f"expected one of {', '.join(p.format(split) for p in FILES[name])}, found none of them")


def _entities(folder: Path, split: str, name: str, places: list[Path]) -> Task:
    listed = folder / f"{split}.txt"
    if not listed.is_file():
        raise TaskError(listed, "is missing; it lists the images of the split, one id a line")

    def read(number: str) -> Sample:
        sentences = folder / "Sentences" / f"{number}.txt"
        picture = locate(Field(f"{number}.jpg", listed, number), places)
        size = image_size(picture)
        boxes, names, captions = read_boxes(folder / "Annotations" / f"{number}.xml", size), defaultdict(dict), []
        if not sentences.is_file():
            raise TaskError(sentences, f"is missing; {listed.name} lists it")
        for row, line in enumerate(sentences.read_text("utf-8").splitlines(), start=1):
            if line.strip():
                text, mentions = read_sentence(line, sentences, row)
                placed = [WordLocation(begin, end, boxes[key]) for begin, end, key in mentions if key in boxes]
                captions.append(Caption(text, words=tuple(placed)))
                for begin, end, key in mentions:
                    names[key][text.encode()[begin:end].decode()] = None
        targets = tuple(Target(tuple(names[key]), None, box) for key, box in boxes.items() if key in names)
        return Sample(picture, size, Source(str(sentences), ""), targets, captions=tuple(captions))

    return Task(name, split, listed, [line.strip() for line in listed.read_text().splitlines() if line.strip()], read)


def read_sentence(line: str, path: Path, row: int) -> tuple[str, list[tuple[int, int, str]]]:
    """(text without marks, [(begin, end, entity)] in UTF-8 bytes) of a line of Sentences/ID.txt."""
    text, mentions, before = "", [], 0
    for match in MENTION.finditer(line):
        text += line[before : match.start()]
        mentions.append((len(text.encode()), len((text + match[2]).encode()), match[1]))
        text, before = text + match[2], match.end()
    text += line[before:]
    if "[/EN#" in text:
        raise TaskError(path, "expected marks like [/EN#1/people Two men], found one that does not end", f"line {row}")
    return text, mentions


def read_boxes(path: Path, size: tuple[int, int]) -> dict[str, Box]:
    """The box of each entity that has one. Of several boxes the one around all: the phrase names them together.

    Raises TaskError for a broken file, another image size or a box outside of it.
    """
    try:
        data = path.read_bytes()
        if b"<!DOCTYPE" in data or b"<!ENTITY" in data:  # the data set has none, and they can make a small file huge
            raise TaskError(path, "expected plain XML without a document type")
        top = ElementTree.fromstring(data)
    except FileNotFoundError:
        raise TaskError(path, "is missing; it holds the boxes of the image") from None
    except ElementTree.ParseError as error:
        raise TaskError(path, f"expected XML ({error})") from None
    for key, actual in (("size/width", size[0]), ("size/height", size[1])):
        if _number(top, key, path, "annotation") != actual:
            raise TaskError(path, f"expected {actual} as in the image, found {top.findtext(key)}", "annotation", key)
    boxes: dict[str, Box] = {}
    for i, thing in enumerate(top.findall("object")):
        if thing.find("bndbox") is None:  # a scene, or something that cannot be seen
            continue
        x0, y0, x1, y1 = (_number(thing, f"bndbox/{key}", path, f"object[{i}]") for key in ("xmin", "ymin", "xmax", "ymax"))
        # Pixels from 1, the last one inside: edges from 0 are one less on the left, the same on the right.
        x0, y0 = max(x0 - 1, 0), max(y0 - 1, 0)
        if not (x0 < min(x1, size[0]) and x1 <= size[0] + 1 and y0 < min(y1, size[1]) and y1 <= size[1] + 1):
            raise TaskError(path, f"expected a box inside the {size[0]}x{size[1]} image, found {x0, y0, x1, y1}", f"object[{i}]", "bndbox")
        for entity in thing.findall("name"):
            a = boxes.get(entity.text or "", (x0, y0, x1, y1))
            boxes[entity.text or ""] = (min(a[0], x0), min(a[1], y0), min(max(a[2], x1), size[0]), min(max(a[3], y1), size[1]))
    return boxes


def _number(element: ElementTree.Element, key: str, path: Path, record: str) -> float:
    try:
        return float(element.findtext(key) or "")
    except ValueError:
        raise TaskError(path, f"expected a number, found {element.findtext(key)!r}", record, key) from None

"""MUSE: questions whose answers name and segment several objects or parts (PixelLM, section 4).

muse_train.json, muse_val.json, muse_test_less.json and muse_test_many.json are lists of {"file_name" of COCO train2014 or
"coco_url", "height", "width", "ann_list": [annotation], "questions": [text], "answers": [[annotation] for each question],
"text_answers"?: [text with one {seg} for each annotation, or null]}. An item without questions has only its objects.
"""

from __future__ import annotations

from pathlib import Path

from pixel_perception.training.tasks.coco import place
from pixel_perception.training.tasks.fields import Field, read_json
from pixel_perception.training.tasks.images import locate, roots, sized
from pixel_perception.training.tasks.sample import SLOT, Round, Sample, Target, Task

YEARS = ("train2014", "train2017", "val2017")
IMAGES = tuple(f"{parent}{year}" for parent in ("images/mscoco/images/", "refer_seg/images/mscoco/images/", "coco/", "images/", "")
               for year in YEARS)  # fmt: skip


def load(folder: Path, split: str, name: str) -> Task:
    """One split ("train", "val", "test_less", "test_many"), a sample for each image with its questions as rounds."""
    path = folder / f"muse_{split}.json"
    places = roots(folder, IMAGES)

    def read(item: Field) -> Sample:
        if item.get("file_name"):
            picture = locate(item["file_name"], places)
        else:
            # The year is part of the address: file names alone do not tell train from val.
            parts = item["coco_url"].text().split("/")
            picture = locate(item["coco_url"], [p for p in places if p.name == parts[-2]] if len(parts) > 1 else places, (parts[-1],))
        size = sized(item, picture)
        if not item.get("questions"):
            return Sample(picture, size, item.source, tuple(_target(a, size) for a in item["ann_list"].items()))
        return Sample(picture, size, item.source, rounds=_rounds(item, size))

    return Task(name, split, path, list(read_json(path).records()), read)


def _rounds(item: Field, size: tuple[int, int]) -> tuple[Round, ...]:
    questions, answers = item["questions"].items(), item["answers"].items()
    if len(answers) != len(questions):
        raise item["answers"].wrong(f"a list of annotations for each of the {len(questions)} questions", f"{len(answers)}")
    texts = item["text_answers"].items() if item.get("text_answers") else []
    if texts and len(texts) != len(questions):
        raise item["text_answers"].wrong(f"a text or null for each of the {len(questions)} questions", f"{len(texts)}")
    rounds = []
    for i, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        targets = tuple(_target(a, size) for a in answer.items())
        if not targets:
            raise answer.wrong("one annotation or more", "none")
        text = texts[i].text() if texts and texts[i].value is not None else ""
        if text and text.count(SLOT) != len(targets):
            raise texts[i].wrong(f"one {SLOT} for each of the {len(targets)} annotations of answers[{i}]", f"{text.count(SLOT)}")
        rounds.append(Round(question.text(), text, targets))
    return tuple(rounds)


def _target(annotation: Field, size: tuple[int, int]) -> Target:
    names = [annotation[key].text() for key in ("rephrased_name", "category_name") if annotation.get(key)]
    if not names:
        raise annotation["category_name"].wrong("a name")
    return Target(tuple(dict.fromkeys(names)), *place(annotation, *size))

"""LLaVA-Instruct-150k: conversations about COCO's images, without masks (Liu et al., Visual Instruction Tuning, 2023).

llava_instruct_150k.json: [{"id", "image", "conversations": [{"from": "human" | "gpt", "value"}]}].
"""

from __future__ import annotations

from pathlib import Path

from pixel_perception.training.tasks.fields import Field, read_json
from pixel_perception.training.tasks.images import image_size, locate, roots
from pixel_perception.training.tasks.sample import Round, Sample, Task

IMAGES = ("coco/train2017", "train2017", "images/train2017", "coco/images/train2017", "images")
MARK = "<image>"


def load(folder: Path, split: str, name: str) -> Task:
    """The only split, "train": a sample for each conversation, its rounds chained."""
    path = folder / "llava_instruct_150k.json"
    if not path.is_file():
        path = folder / "llava_dataset" / path.name
    places = roots(folder, IMAGES)

    def read(item: Field) -> Sample:
        picture = locate(item["image"], places)
        return Sample(picture, image_size(picture), item.source, rounds=conversation(item["conversations"]), chained=True)

    return Task(name, split, path, list(read_json(path).records()), read)


def conversation(turns: Field) -> tuple[Round, ...]:
    """Rounds of a conversation; the mark of the image's place is taken out. Raises TaskError where two do not take turns."""
    said = turns.items()
    if said and said[0]["from"].value == "gpt":  # an answer to nothing
        said = said[1:]
    for i, turn in enumerate(said):
        if turn["from"].value != ("human", "gpt")[i % 2]:
            raise turn["from"].wrong(f'"{("human", "gpt")[i % 2]}"')
    if len(said) < 2 or len(said) % 2:
        raise turns.wrong("questions that are all answered", f"{len(said)} turns")
    return tuple(Round(_clean(q["value"]), _clean(a["value"])) for q, a in zip(said[::2], said[1::2], strict=True))


def _clean(value: Field) -> str:
    text = value.text().replace(MARK, "").strip()
    if not text:
        raise value.wrong("a text beside the image")
    return text

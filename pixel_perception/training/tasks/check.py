"""`pixel-perception data check | show | list`: is a folder fit to train on, and what would a model see of it."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pixel_perception.cli import Parser
from pixel_perception.training.tasks.registry import DATA_SETS, find
from pixel_perception.training.tasks.sample import SLOT, Rle, Sample, Task, TaskError
from pixel_perception.types import Box

if TYPE_CHECKING:
    import numpy as np

WIDE, GREY = 420, (90, 90, 90)
"""Least width of a picture on the sheet in pixels, and the colour of what counts neither way."""
USAGE = """usage: pixel-perception data check NAME PATH [--split S] [--json]
       pixel-perception data show NAME PATH --out FILE [--split S] [--count N]
       pixel-perception data list

Data sets in the folder layout in which their authors publish them. `check` reads every record and every image's header and
says which file, record and field is wrong (exit code 1); `show` draws what a model would be trained on."""


def main(argv: Sequence[str]) -> int:
    """`pixel-perception data`."""
    commands = {"check": check, "show": show, "list": names}
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    if argv[0] not in commands:
        raise TaskError("data", f"no sub-command {argv[0]!r}; expected one of {', '.join(commands)}")
    return commands[argv[0]](argv[1:])


def names(argv: Sequence[str]) -> int:
    """`data list`."""
    Parser("pixel-perception data list", description="The data sets with their splits and folder layouts.").parse_args(argv)
    for d in DATA_SETS.values():
        print(f"{d.name}\n    {', '.join(d.splits)}\n    {d.layout}")
    return 0


def check(argv: Sequence[str]) -> int:
    """`data check`: 0 when all is sound, 1 when a record is not; raises TaskError when there is nothing to read records from."""
    parser = _parser("check", "Read every record of a data set and the header of every image.")
    parser.add_argument("--json", action="store_true", help="print one JSON object with the splits and every problem")
    parser.add_argument("--most", type=int, default=20, metavar="N", help="problems to print; --json prints all")
    arguments = parser.parse_args(argv)
    splits, problems = {}, []
    for task in _tasks(arguments):
        found = [error for _, error in _walk(task)]
        splits[task.split] = {"samples": len(task), "damaged": len(found)}
        problems += found
    if arguments.json:
        rows = [{"file": p.file, "record": p.record, "field": p.field, "message": p.message} for p in problems]
        print(json.dumps({"name": find(arguments.name).name, "splits": splits, "problems": rows}, indent=1))
    else:
        for split, counts in splits.items():
            verdict = f"{counts['damaged']} of them damaged" if counts["damaged"] else "all sound"
            print(f"{split}: {counts['samples']} samples, {verdict}")
        for error in problems[: arguments.most]:
            print(error, file=sys.stderr)
        if len(problems) > arguments.most:
            print(f"... and {len(problems) - arguments.most} more", file=sys.stderr)
    return 1 if problems else 0


def show(argv: Sequence[str]) -> int:
    """`data show`: a contact sheet of samples drawn at random. Raises TaskError for a damaged one."""
    parser = _parser("show", "Draw samples with their masks, boxes, places of words, questions and answers into one picture.")
    parser.add_argument("--out", required=True, metavar="FILE", help="picture to write, for example sheet.png")
    parser.add_argument("--count", type=int, default=12, metavar="N", help="samples on the sheet")
    parser.add_argument("--seed", type=int, default=0, help="of the draw and of the questions' wording")
    arguments = parser.parse_args(argv)
    if arguments.count < 1:
        parser.error(f"argument --count: expected 1 or more, found {arguments.count}")
    tasks = _tasks(arguments)

    from PIL import Image

    from pixel_perception.drawing import contact_sheet

    rng = random.Random(arguments.seed)
    places = [(task, i) for task in tasks for i in rng.sample(range(len(task)), min(len(task), arguments.count))]
    chosen = rng.sample(places, min(len(places), arguments.count))
    pictures = [picture(task[i], f"{task.name} {task.split}", rng) for task, i in chosen]
    tallest = max(p.shape[0] * WIDE // p.shape[1] for p in pictures)
    sheet = contact_sheet(pictures, min(3, len(pictures)), (WIDE + 6, min(tallest, 900) + 6))
    try:
        Image.fromarray(sheet).save(arguments.out)
    except ValueError:  # PIL's way to say that it knows no such kind of file
        raise TaskError(arguments.out, "expected the name of a picture, such as sheet.png") from None
    print(f"{arguments.out}: {len(pictures)} of {sum(map(len, tasks))} samples")
    return 0


def picture(sample: Sample, title: str, rng: random.Random, most: int = 6) -> np.ndarray:
    """(h, w, 3) uint8: the image with what is known drawn in, and below it the texts of a training step."""
    import numpy as np
    from PIL import Image

    from pixel_perception.drawing import COLORS, band, draw, paint
    from pixel_perception.training.tasks.phrasing import converse
    from pixel_perception.training.tasks.rle import to_bits
    from pixel_perception.types import Region

    with Image.open(sample.image) as stored:
        factor = max(1.0, WIDE / stored.width)  # small pictures would leave the labels no room
        size = round(stored.width * factor), round(stored.height * factor)
        image = np.array(stored.convert("RGB").resize(size))

    def tint(mask: Rle | None, color: tuple[int, int, int]) -> None:
        if mask is not None:
            paint(image, np.asarray(Image.fromarray(to_bits(mask)).resize(size)), (0, 0), color)

    def scaled(box: Box) -> Box:
        return tuple(v * factor for v in box)

    regions, lines, number = [], [title, str(sample.source).rsplit("/", 1)[-1]], 0
    for asked in converse(sample, rng):
        answer = asked.answer
        for target in asked.targets:
            number += 1
            tint(target.mask, COLORS[(number - 1) % len(COLORS)])
            tint(target.ignore, GREY)
            if target.box is not None:
                regions.append(Region(scaled(target.box), f"{number}", 1.0))
            answer = answer.replace(SLOT, f"[{number}]", 1)
        lines += [f"Q: {asked.question}", f"A: {answer}"]
    captions = sample.captions[:most]
    regions += [Region(scaled(caption.box), caption.text, 1.0) for caption in captions if caption.box is not None]
    lines += [caption.text for caption in captions if caption.box is None]
    drawn = draw(image, regions=regions)
    for caption in captions[:1]:
        placed = [replace(word, box=scaled(word.box)) for word in caption.words]
        drawn = draw(drawn, words=placed, text=caption.text)
    return np.concatenate([drawn, band(lines, drawn.shape[1])])


def _parser(name: str, description: str) -> Parser:
    parser = Parser(f"pixel-perception data {name}", description=description)
    parser.add_argument("name", help="data set, one of " + ", ".join(DATA_SETS).replace("%", "%%"))
    parser.add_argument("path", type=Path, help="its folder")
    parser.add_argument("--split", help="only this one; without it every split that the folder holds")
    return parser


def _tasks(arguments) -> list[Task]:
    data_set = find(arguments.name)
    return [data_set.open(arguments.path, arguments.split)] if arguments.split else data_set.open_all(arguments.path)


def _walk(task: Task):
    if not sys.stderr.isatty():
        yield from task.problems()
        return
    from tqdm import tqdm

    with tqdm(total=len(task), unit="sample", desc=f"{task.name} {task.split}") as bar:
        yield from task.problems(bar.update)

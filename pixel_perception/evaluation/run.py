"""Asks a model everything that a split of a data set asks, one image after another, and keeps what was answered.

A record is one image: {"key", "data", "index", "source", "encode_ms", "requests": [{"kind", "text", "answers": {mode: marks}}]};
`answers.mark` describes the marks. Records go to a file as they are made, so that a run goes on where it was stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pixel_perception.evaluation.answers import mark
from pixel_perception.evaluation.pictures import picture
from pixel_perception.evaluation.predictors import EvaluationError, Predictor
from pixel_perception.evaluation.records import append, stored
from pixel_perception.evaluation.requests import KINDS, requests
from pixel_perception.training.tasks.registry import find
from pixel_perception.training.tasks.sample import EmptySplit, Task

FORMAT = 1
"""Of a record; records of another format are made anew."""

PICTURES_OF_KIND = 2
"""Pictures of one image for each kind of request."""


def open_splits(argument: str, split: str | None) -> list[Task]:
    """The splits that `--data NAME=PATH` means: the given one, else all but train that the folder holds.

    Raises EvaluationError for another form, a data set that has no measure, or a folder with nothing but train; TaskError for an
    unknown data set, a wrong folder or an empty split.
    """
    name, equals, path = argument.partition("=")
    if not equals or not path:
        raise EvaluationError(f"--data: expected DATASET=PATH, for example refcoco=data/refer_seg, found {argument!r}")
    data_set = find(name)
    if data_set.name not in KINDS:
        raise EvaluationError(f"--data: {data_set.name} cannot be evaluated, its answers are free text; expected one of {', '.join(KINDS)}")
    if split is not None:
        return [data_set.open(path, split)]
    tasks, held = [], [s for s in data_set.present(Path(path)) if s != "train"]
    if not held:
        raise EvaluationError(f"--data: {path} holds only the train split of {data_set.name}; add --split train to evaluate on it")
    for name in held:
        try:
            tasks.append(data_set.open(path, name))
        except EmptySplit:
            if not data_set.shared or (name == held[-1] and not tasks):
                raise
    return tasks


def check(predictor: Predictor, task: Task) -> tuple[str, ...]:
    """The kinds of request that this model answers on this data set. Raises EvaluationError for none."""
    kinds = tuple(kind for kind in KINDS[task.name] if kind in predictor.kinds)
    if not kinds:
        able = ", ".join(name for name, asked in KINDS.items() if set(asked) & set(predictor.kinds))
        raise EvaluationError(f"--data: {predictor.name} cannot answer what {task.name} asks; expected one of {able}")
    return kinds


def chosen(count: int, limit: int | None) -> list[int]:
    """Indices of `limit` samples spread evenly over `count`, or all of them."""
    return list(range(count)) if limit is None or limit >= count else [i * count // limit for i in range(limit)]


def run(predictor: Predictor, task: Task, limit: int | None = None, out: Path | None = None, pictures: int = 0,
        progress: Callable[[int], object] = lambda n: None) -> list[dict]:
    """The records of a split, in order. With `out`, those in `out/records.jsonl` of the same weights are not asked again, and the
    first `pictures` answers of new ones are drawn into `out/pictures`, a few of each image. Raises TaskError for a damaged sample."""
    kinds, data = check(predictor, task), f"{task.name}/{task.split}"
    key = f"{FORMAT} {predictor.name} {predictor.identity} {','.join(kinds)}"
    file = out / "records.jsonl" if out else None
    wanted = chosen(len(task), limit)
    done = {row["index"]: row for row in (stored(file) if file else ()) if row.get("key") == key and row.get("data") == data}
    progress(sum(i in done for i in wanted))
    drawn = 0
    for i in wanted:
        if i in done:
            continue
        sample = task[i]
        image = load_image(sample.image)
        begun = time.perf_counter()
        seen = predictor.look(image)
        row = {"key": key, "data": data, "index": i, "source": str(sample.source), "encode_ms": 1000 * (time.perf_counter() - begun),
               "requests": []}  # fmt: skip
        for asked in requests(task.name, sample, i, kinds):
            answers = predictor.answer(seen, asked)
            marks = {mode: mark(asked, answer, sample.size) for mode, answer in answers.items()}
            row["requests"].append({"kind": asked.kind, "text": asked.text, "answers": marks})
            if out and drawn < pictures and sum(r["kind"] == asked.kind for r in row["requests"]) <= PICTURES_OF_KIND:
                mode, answer = next(iter(answers.items()))
                name = f"{data.replace('/', '-')}-{i:06}-{len(row['requests']):02}"
                picture(image, asked, answer, marks[mode], out / "pictures" / f"{name}.jpg")
                drawn += 1
        if file:
            append(file, row)
        done[i] = row
        progress(1)
    return [done[i] for i in wanted]


def load_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB, as stored."""
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))

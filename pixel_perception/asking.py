"""One query on its way to its result: what the language model says becomes text, targets, instances, regions and placed words."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pixel_perception.bundle import Templates
from pixel_perception.runtime.instances import find, region_at
from pixel_perception.runtime.language import Answer, Cancel, Group, Prompt
from pixel_perception.runtime.session import Past
from pixel_perception.runtime.text import normalised, words
from pixel_perception.runtime.vision import Encoded
from pixel_perception.tracking import assign
from pixel_perception.types import Box, Instance, Partial, Query, Region, Result, Standing, Target, Task, Timings, WordLocation

if TYPE_CHECKING:
    from pixel_perception.perception import Perception

BETWEEN = ", "
"""Between the captions of several regions in a result's text."""
TOGETHER = 32
"""So many instructions or regions are decoded as one batch."""


class Answering:
    """One query on its way."""

    def __init__(self, perception: Perception, encoded: Encoded, query: Query, on_partial: Callable[[Partial], None],
                 cancel: Cancel | None, started: float) -> None:
        self.vision, self.language, self.perception = perception.vision, perception.language, perception
        self.thresholds, self.templates = perception.manifest.thresholds, perception.manifest.templates
        self.encoded, self.query, self.on_partial, self.cancel, self.started = encoded, query, on_partial, cancel, started
        self.least = self.thresholds.presence if query.score_threshold is None else query.score_threshold
        self.timings = {"prefix": 0.0, "language": 0.0, "pixels": 0.0, "first_mask": 0.0}
        self.instruction = _instruction(query, self.templates)
        self.told = normalised(query.text) if query.task in (Task.SEGMENT, Task.REFER) else ""
        self.answer = Answer()
        self.targets: list[Target] = []
        self.instances: list[Instance] = []
        self.queries: list[np.ndarray] = []
        self.text, self.reason = "", "stop"
        self.words: list[WordLocation] = []
        self.regions: list[Region] = []

    def result(self) -> Result:
        """Everything that is known; captions are made here."""
        if self.instruction is not None:
            self.text, self.reason = self.answer.stream.text, self.answer.finish_reason or "cancelled"
            self._place(self.answer, 0)
        elif self.cancel is not None and self.cancel.is_set():
            self.reason = "cancelled"
        else:
            self._caption()
        timings = Timings(**self.timings, total=time.perf_counter() - self.started)
        info = self.perception.info
        return Result(self.query.id, self.encoded.image_size, self.text, tuple(self.targets), tuple(self.instances), tuple(self.words),
                      tuple(self.regions), self._standing(), self.reason, timings, info.name, info.digest)  # fmt: skip

    def take(self, event: str | Group) -> None:
        """The next piece of the answer."""
        if isinstance(event, Group):
            begun = time.perf_counter()
            self._target(event)
            self.timings["pixels"] += time.perf_counter() - begun
        elif event:
            self.on_partial(Partial("text", event))

    def _target(self, group: Group) -> None:
        queries = self.vision.fuse(group.states[None])
        logits, presence = self.vision.decode(self.encoded, queries)
        target = Target(group.label, group.quantity, group.score, False, group.span)
        limit, boxes = self.query.max_instances, self.vision.boxes(self.encoded, queries)
        box = None if boxes is None else tuple(map(float, self.encoded.letterbox.to_source(boxes[0])))
        target, found = find(self.vision, self.encoded, target, len(self.targets), logits[0], score(target, presence, 0), self.least,
                             self.thresholds.mask, limit - len(self.instances) if limit else None, box)  # fmt: skip
        self.targets.append(target)
        self.queries.append(queries)
        for instance in found:
            # The first frame gives ids in order; `tracking.assign` would give the same ones without anything to compare with.
            instance = replace(instance, track_id=len(self.instances) + 1)
            self.instances.append(instance)
            self.timings["first_mask"] = self.timings["first_mask"] or time.perf_counter() - self.started
            self.on_partial(Partial("instance", instance=instance))

    def _caption(self) -> None:
        boxes, scores = self._boxes()
        if not boxes:
            return
        prefix, question = self.prefix(), self.templates.caption_region
        spent = time.perf_counter()
        tokens, _ = self.vision.regions(self.encoded, self.encoded.letterbox.to_network(np.array(boxes)))
        prompts, answers = [Prompt(question, region, self.query.max_new_tokens) for region in tokens], [Answer() for _ in boxes]
        for i in range(0, len(boxes), TOGETHER):
            for _, event in self.language.converse(prefix, prompts[i : i + TOGETHER], answers[i : i + TOGETHER], self.cancel):
                if len(boxes) == 1 and event:
                    self.on_partial(Partial("text", event))
        for i, (box, score, answer) in enumerate(zip(boxes, scores, answers, strict=True)):
            caption = answer.stream.text
            if len(boxes) > 1:
                self.on_partial(Partial("text", (BETWEEN if i else "") + caption))
            begin = len(self.text.encode()) + (len(BETWEEN) if i else 0)
            self.text += (BETWEEN if i else "") + caption
            self.regions.append(Region(box, caption, score * answer.confidence))
            self.on_partial(Partial("region", region=self.regions[-1]))
            self._place(answer, begin)
        # The gravest reason speaks for all.
        self.reason = max((a.finish_reason for a in answers), key=("stop", "length", "context", "cancelled").index)
        self.timings["language"] = time.perf_counter() - spent

    def _boxes(self) -> tuple[list[Box], list[float]]:
        """Boxes to caption in source pixels, and the score of what proposed them (1 for those that were given)."""
        letterbox = self.encoded.letterbox
        if self.query.task is Task.CAPTION_DENSE:
            objects = self.vision.objects(self.encoded)
            # A proposal may lie in the padding, which has no place in the source image.
            boxes = letterbox.to_source(objects.boxes)
            kept = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
            return [tuple(map(float, boxes[i])) for i in kept], [float(objects.scores[i]) for i in kept]
        boxes = list(self.query.boxes)
        if self.query.points:
            proposed = letterbox.to_source(self.vision.objects(self.encoded).boxes)
            boxes += [region_at(proposed, point, self.encoded.image_size) for point in self.query.points]
        return boxes, [1.0] * len(boxes)

    def _place(self, answer: Answer, begin: int) -> None:
        """Put the words of an answer, which starts at byte `begin` of the text, into the image."""
        if not answer.states:
            return
        places = self.vision.places(self.encoded, np.stack(answer.states))
        if places is None:
            return
        points = self.encoded.letterbox.to_source(places)
        for first, last, tokens in words(answer.stream.text, answer.tokens):
            box = points[tokens].mean(0)
            self.words.append(WordLocation(begin + first, begin + last, tuple(map(float, box))))

    def prefix(self) -> Past:
        begun = time.perf_counter()
        prefix = self.perception.prefix(self.encoded)
        self.timings["prefix"] = time.perf_counter() - begun
        return prefix

    def _standing(self) -> Standing | None:
        if not self.queries:
            return None
        _, tracks, free = assign(self.instances, (), 1)
        queries = np.concatenate(self.queries) if self.vision.lasting else None
        return Standing(self.query.id, self.text, tuple(self.targets), queries, self.least, self.query.max_instances, tracks, free,
                        self.perception.info.digest)


def _instruction(query: Query, templates: Templates) -> str | None:
    """What the language model is asked; None where it is asked about boxes."""
    if query.task in (Task.CAPTION_REGION, Task.CAPTION_DENSE):
        return None
    if query.task is Task.NARRATE:
        return templates.narrate
    if query.task is Task.ANSWER:
        text = query.text.strip()
        # Where a sentence follows, this one must have an end: people say "the red mug".
        return templates.answer.replace("{}", text if text[-1] in ".!?" or templates.answer == "{}" else f"{text}.")
    return templates.segment.replace("{}", normalised(query.text))


def score(target: Target, presence: np.ndarray | None, index: int) -> float:
    """How sure the model is of a target: what its pixels say, else what the language model said."""
    return target.score if presence is None else float(presence[index])


def converse(runs: list[Answering], cancel: Cancel | None) -> None:
    """Answer the instructions of several runs about one frame together."""
    for i in range(0, len(runs), TOGETHER):
        some = runs[i : i + TOGETHER]
        prefix, spent = some[0].prefix(), time.perf_counter()
        prompts = [Prompt(run.instruction, None, run.query.max_new_tokens, run.query.text, run.told) for run in some]
        for index, event in some[0].language.converse(prefix, prompts, [run.answer for run in some], cancel):
            some[index].take(event)
        spent = time.perf_counter() - spent - sum(run.timings["pixels"] for run in some)
        for run in some:
            run.timings |= {"prefix": some[0].timings["prefix"], "language": spent}

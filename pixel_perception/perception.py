"""The one entry point: open a bundle, ask about a frame, follow what was asked in the frames that come."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from pixel_perception.bundle import Bundle, Manifest, Templates
from pixel_perception.errors import PerceptionError
from pixel_perception.runtime import families
from pixel_perception.runtime.backends import open_backend
from pixel_perception.runtime.instances import find, region_at
from pixel_perception.runtime.language import Answer, Cancel, Group, Prompt
from pixel_perception.runtime.meanwhile import Meanwhile
from pixel_perception.runtime.session import Backend, Past
from pixel_perception.runtime.text import normalised, words
from pixel_perception.runtime.vision import Encoded
from pixel_perception.tracking import assign
from pixel_perception.types import (
    Box,
    Instance,
    Partial,
    Query,
    Region,
    Result,
    Standing,
    Target,
    Task,
    Timings,
    WordLocation,
    check_frame,
)

__all__ = ["Encoded", "ModelInfo", "Perception"]

BETWEEN = ", "
"""Between the captions of several regions in a result's text."""
TOGETHER = 32
"""So many instructions or regions are decoded as one batch."""


@dataclass(frozen=True)
class ModelInfo:
    """What is loaded, and where it runs."""

    name: str
    version: str
    licence: str
    digest: str
    folder: str
    tasks: tuple[str, ...]
    backend: str
    threads: int
    precision: str
    """Of the language model; the manifest says that of every graph."""
    memory: int
    """Bytes of weights held."""
    accepted_drift: str = ""
    """Where the bundle is known to differ from its training, and why that was accepted."""


class Perception:
    """A model that is ready to be asked. Its methods may be called from several threads at once; the same query about the same
    frame always has the same answer."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        """Load every graph of a verified bundle. Raises PerceptionError INVALID_BUNDLE."""
        self._manifest, self._digest, self._backend = bundle.manifest, bundle.digest, backend
        self.vision, self.language = families.load(bundle, backend)
        sizes = sum(bundle.graph(name).stat().st_size for name in bundle.manifest.graphs)
        sizes += sum(bundle.file(name).stat().st_size for name in bundle.manifest.files)
        self._info = ModelInfo(bundle.manifest.name, bundle.manifest.version, bundle.manifest.licence, bundle.digest, str(bundle.folder),
                               bundle.manifest.tasks, backend.name, backend.threads, _precision(bundle.manifest), sizes,
                               bundle.manifest.accepted_drift)  # fmt: skip

    @property
    def info(self) -> ModelInfo:
        """What is loaded, and where it runs at the moment."""
        return replace(self._info, backend=self._backend.name)

    @property
    def progress(self) -> str:
        """What the backend is building while another answers for it, in words; empty when nothing is."""
        return self._backend.progress if isinstance(self._backend, Meanwhile) else ""

    @staticmethod
    def open(bundle: str | Path | None = None, backend: str = "auto", threads: int | None = None) -> Perception:
        """Verify and load a bundle's folder; None takes the assembled compact bundle in the user's cache.

        `backend` is one of `runtime.BACKENDS`; `threads` per graph, None takes all cores. Raises PerceptionError
        INVALID_BUNDLE naming the file, INVALID_QUERY for a backend that is not there.
        """
        if threads is not None and threads < 1:
            raise PerceptionError("INVALID_QUERY", f"threads: expected 1 or more, found {threads}.")
        return Perception(Bundle.open(bundle), open_backend(backend, threads))

    def encode(self, frame: np.ndarray) -> Encoded:
        """Features of a frame (H, W, 3) uint8 RGB, to be asked and followed any number of times; what language and proposals
        need is added when it is first needed. Raises PerceptionError INVALID_IMAGE."""
        return self.vision.encode(check_frame(frame))

    def encode_all(self, frames: Sequence[np.ndarray]) -> list[Encoded]:
        """Features of the frames of several cameras, (H, W, 3) uint8 RGB of any sizes, as one batch: for a device that a single
        frame leaves idle. On a CPU a batch takes as long as its frames one by one, and the first waits for the last. Raises
        PerceptionError INVALID_IMAGE."""
        return self.vision.encode_all([check_frame(frame) for frame in frames]) if frames else []

    def ask(self, frame: np.ndarray | Encoded, query: Query, on_partial: Callable[[Partial], None] | None = None,
            cancel: Cancel | None = None) -> Result:
        """Answer a query about a frame.

        `on_partial` is called in this thread with every piece of text, every region and every instance as soon as it is known;
        `cancel` is looked at before every token and ends the answer with what there is. Raises PerceptionError INVALID_QUERY,
        INVALID_IMAGE or OUT_OF_MEMORY.
        """
        return self.ask_all(frame, [query], on_partial and (lambda _, piece: on_partial(piece)), cancel)[0]

    def ask_all(self, frame: np.ndarray | Encoded, queries: Sequence[Query],
                on_partial: Callable[[int, Partial], None] | None = None, cancel: Cancel | None = None) -> list[Result]:
        """Answer several queries about one frame: instructions are decoded together, in much less time than one after the other.

        `on_partial` is called with the query's index and what is known of its answer; `cancel` ends all of them. The time of
        what is done together counts for each. Raises as `ask`.
        """
        started = time.perf_counter()
        fresh = not isinstance(frame, Encoded)
        if fresh:
            check_frame(frame)
        width, height = frame.image_size if not fresh else (frame.shape[1], frame.shape[0])
        queries = [self._offered(query.checked(width, height, Task(self._manifest.auto))) for query in queries]
        encoded = self.vision.encode(frame) if fresh else frame
        tell = on_partial or (lambda index, piece: None)
        runs = [_Run(self, encoded, query, partial(tell, i), cancel, started) for i, query in enumerate(queries)]
        for run in runs:
            run.timings["encode"] = encoded.seconds if fresh else 0.0
        if cancel is None or not cancel.is_set():
            _converse([run for run in runs if run.instruction is not None], cancel)
        return [run.result() for run in runs]

    def _offered(self, query: Query) -> Query:
        """The query, where the model has its task."""
        if query.task.value not in self._manifest.tasks:
            had = ", ".join(self._manifest.tasks)
            raise PerceptionError("INVALID_QUERY", f"task: expected one of {self._manifest.name}'s ({had}), found {query.task.value}.")
        return query

    def follow(self, frame: np.ndarray | Encoded, standing: Standing) -> Result:
        """Find the targets of a standing instruction in another frame: without language, unless the model must read the
        instruction again to find them (PixelLLM).

        The result's `standing` remembers where they are now: hand it to the next call and track ids stay with their objects.
        Raises PerceptionError INVALID_IMAGE, or INVALID_QUERY for a standing instruction of another bundle.
        """
        started = time.perf_counter()
        if standing.digest != self._digest:
            raise PerceptionError("INVALID_QUERY", f"standing: expected an instruction understood by bundle {self._digest[:12]}, "
                                                   f"found one of {standing.digest[:12] or 'none'}.")
        encoded = frame if isinstance(frame, Encoded) else self.encode(frame)
        pixels, language = time.perf_counter(), 0.0
        if standing.queries is None:
            query = Query(standing.text, Task.REFER, score_threshold=standing.threshold, max_instances=standing.max_instances)
            again = self.ask(encoded, query)
            targets, instances, language = again.targets, again.instances, again.timings.prefix + again.timings.language
        else:
            targets, instances = self._seen(encoded, standing)
        named, tracks, free = assign(instances, standing.tracks, standing.next_id)
        now = time.perf_counter()
        timings = Timings(encode=0.0 if encoded is frame else encoded.seconds, language=language, pixels=now - pixels - language,
                          first_mask=now - started if named else 0.0, total=now - started)  # fmt: skip
        following = replace(standing, targets=tuple(targets), tracks=tracks, next_id=free)
        return Result(standing.query_id, encoded.image_size, standing.text, tuple(targets), named, (), (), following, "followed",
                      timings, self.info.name, self._digest)  # fmt: skip

    def _seen(self, encoded: Encoded, standing: Standing) -> tuple[list[Target], list[Instance]]:
        """What the queries of a standing instruction find in a frame."""
        logits, presence = self.vision.decode(encoded, standing.queries)
        targets, instances = [], []
        for i, target in enumerate(standing.targets):
            room = standing.max_instances - len(instances) if standing.max_instances else None
            target, found = find(self.vision, encoded, target, i, logits[i], _score(target, presence, i), standing.threshold,
                                 self._manifest.thresholds.mask, room)  # fmt: skip
            targets.append(target)
            instances += found
        return targets, instances

    def prefix(self, encoded: Encoded) -> Past:
        """The frame as the language model has read it: made once per frame, shared by its questions."""

        return encoded.once("prefix", lambda: self.language.prefix(*self.vision.visual(encoded)))


class _Run:
    """One query on its way."""

    def __init__(self, perception: Perception, encoded: Encoded, query: Query, on_partial: Callable[[Partial], None],
                 cancel: Cancel | None, started: float) -> None:
        self.vision, self.language, self.perception = perception.vision, perception.language, perception
        self.thresholds, self.templates = perception._manifest.thresholds, perception._manifest.templates
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
        target, found = find(self.vision, self.encoded, target, len(self.targets), logits[0], _score(target, presence, 0), self.least,
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


def _precision(manifest: Manifest) -> str:
    """Of the graphs of the language model."""
    return ", ".join(sorted({graph.precision for name, graph in manifest.graphs.items() if name.startswith("language")}))


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


def _score(target: Target, presence: np.ndarray | None, index: int) -> float:
    """How sure the model is of a target: what its pixels say, else what the language model said."""
    return target.score if presence is None else float(presence[index])


def _converse(runs: list[_Run], cancel: Cancel | None) -> None:
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

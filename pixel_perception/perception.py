"""The one entry point: open a bundle, ask about a frame, follow what was asked in the frames that come."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from pixel_perception.asking import Answering, converse, score
from pixel_perception.bundle import Bundle, Manifest
from pixel_perception.errors import PerceptionError
from pixel_perception.runtime import families
from pixel_perception.runtime.backends import open_backend
from pixel_perception.runtime.instances import find
from pixel_perception.runtime.language import Cancel
from pixel_perception.runtime.meanwhile import Meanwhile
from pixel_perception.runtime.session import Backend, Past
from pixel_perception.runtime.vision import Encoded
from pixel_perception.tracking import assign
from pixel_perception.types import (
    Instance,
    Partial,
    Query,
    Result,
    Standing,
    Target,
    Task,
    Timings,
    check_frame,
)

__all__ = ["Encoded", "ModelInfo", "Perception"]


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
        self.manifest, self._digest, self._backend = bundle.manifest, bundle.digest, backend
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
        queries = [self._offered(query.checked(width, height, Task(self.manifest.auto))) for query in queries]
        encoded = self.vision.encode(frame) if fresh else frame
        tell = on_partial or (lambda index, piece: None)
        runs = [Answering(self, encoded, query, partial(tell, i), cancel, started) for i, query in enumerate(queries)]
        for run in runs:
            run.timings["encode"] = encoded.seconds if fresh else 0.0
        if cancel is None or not cancel.is_set():
            converse([run for run in runs if run.instruction is not None], cancel)
        return [run.result() for run in runs]

    def _offered(self, query: Query) -> Query:
        """The query, where the model has its task."""
        if query.task.value not in self.manifest.tasks:
            had = ", ".join(self.manifest.tasks)
            raise PerceptionError("INVALID_QUERY", f"task: expected one of {self.manifest.name}'s ({had}), found {query.task.value}.")
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
            target, found = find(self.vision, encoded, target, i, logits[i], score(target, presence, i), standing.threshold,
                                 self.manifest.thresholds.mask, room)  # fmt: skip
            targets.append(target)
            instances += found
        return targets, instances

    def prefix(self, encoded: Encoded) -> Past:
        """The frame as the language model has read it: made once per frame, shared by its questions."""
        return encoded.once("prefix", lambda: self.language.prefix(*self.vision.visual(encoded)))


def _precision(manifest: Manifest) -> str:
    """Of the graphs of the language model."""
    return ", ".join(sorted({graph.precision for name, graph in manifest.graphs.items() if name.startswith("language")}))

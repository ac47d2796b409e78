"""What every row measures: one bundle, the recording's frames, and the least time that its work could take."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pixel_perception.benchmark import roofline
from pixel_perception.bundle import Bundle
from pixel_perception.commands import read_image, share
from pixel_perception.perception import Perception
from pixel_perception.runtime.language import Answer, Prompt
from pixel_perception.runtime.onnxruntime import OnnxRuntime
from pixel_perception.runtime.vision import Encoded
from pixel_perception.types import Query


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    rounds: int = 7
    prefill: int = 200
    """Tokens of the prompt that is read."""
    steps: int = 48
    """Tokens decoded after it."""
    regions: int = 16
    processes: int = 5
    """Fresh processes for the cold start."""


class Subject:
    """A bundle opened for measuring, with the frames that are asked about."""

    def __init__(self, bundle: Bundle, threads: int | None, effort: Effort, instruction: str) -> None:
        """`instruction`: one with three targets in the first frame."""
        self.bundle, self.effort, self.query = bundle, effort, Query(instruction)
        self.backend = OnnxRuntime(threads)
        self.perception, self.threads = Perception(bundle, self.backend), self.backend.threads
        self.language, self.vision = self.perception.language, self.perception.vision
        folder = share("demo/recording")
        self.files = sorted(folder.glob("9*.jpg"))
        self.frames = [read_image(str(path)) for path in self.files]

    @cached_property
    def machine(self) -> roofline.Machine:
        return roofline.measure(self.threads)

    @cached_property
    def encoded(self) -> Encoded:
        """The first frame, with everything that questions share."""
        encoded = self.perception.encode(self.frames[0])
        self.perception.prefix(encoded)
        return encoded

    @cached_property
    def token(self) -> roofline.Work:
        """What reading one token takes."""
        return roofline.work_of(self.bundle.graph("language_model"), self._zeros(1, 0))

    def operators(self, count: int, before: int) -> dict[str, float]:
        """Milliseconds of the language's operators while `count` positions are read after `before`."""
        return roofline.operators(self.bundle.graph("language_model"), self._zeros(count, before), self.threads)

    def _zeros(self, count: int, before: int) -> dict[str, np.ndarray]:
        """Inputs of the language graph for `count` positions after `before`."""
        sizes = {"step": count, "past": before, "total": before + count, "asked": 1}
        inputs = self.bundle.manifest.graphs["language_model"].inputs
        return {spec.name: np.zeros([sizes.get(n, n) for n in spec.shape], spec.dtype) for spec in inputs}

    def pixel_feeds(self, targets: int) -> dict[str, dict[str, np.ndarray]]:
        """Inputs of the graphs that a standing instruction of so many targets runs."""
        image = self.bundle.manifest.image
        return {
            "image_encoder": {"image": np.zeros((1, image.height, image.width, 3), np.uint8)},
            "pixel_decoder": self.encoded.features | {"queries": np.zeros((1, targets, 2, 128), np.float32)},
        }

    def pixels(self, targets: int, whole: bool = False) -> float:
        """Operations of encoding a frame and decoding masks of `targets`; `whole`: with proposals and region prompts."""
        maps = {name: self.encoded.features[name] for name in ("features_16", "features_8")}
        feeds = self.pixel_feeds(targets)
        if whole:
            boxes = np.tile(np.array([0, 0, 1, 1], np.float32), (1 + len(self.vision.objects(self.encoded).boxes), 1))
            rank = next(len(t.shape) for t in self.bundle.manifest.graphs["prompt_feature_extractor"].inputs if t.name == "boxes")
            boxes = boxes[None] if rank == 3 else boxes
            feeds |= {"proposals": maps, "prompt_feature_extractor": maps | {"boxes": boxes}}
        return sum(roofline.work_of(self.bundle.graph(name), given).operations for name, given in feeds.items())

    def least(self, *steps: tuple[int, int]) -> float:
        """Least seconds of language steps of (positions read, positions whose logits are wanted): the weights read once from
        memory, or the products at the peak of 8-bit arithmetic, whichever takes longer."""
        logits = 2.0 * len(self.language.vocabulary.embeddings) * self.language.decoder.hidden
        return sum(max(self.token.weights / self.machine.bandwidth,
                       (self.token.operations * count - logits * (count - asked)) / self.machine.int8)
                   for count, asked in steps)  # fmt: skip

    def steps(self, prompts: Sequence[Prompt]) -> list[tuple[int, int]]:
        """The language's steps, as `least` counts them, while prompts about the first frame are answered together."""
        counted, decoder = [], self.language.decoder

        class Counting:
            hidden = decoder.hidden

            def read(self, parts, past, asked=None):
                counted.append((sum(map(len, parts)), sum(len(part) > 0 for part in parts) if asked is None else len(asked)))
                return decoder.read(parts, past, asked)

        language = copy(self.language)
        language.decoder = Counting()
        for _ in language.converse(self.perception.prefix(self.encoded), prompts, [Answer() for _ in prompts]):
            pass
        return counted

    def grid(self, count: int) -> tuple[tuple[float, float, float, float], ...]:
        """`count` boxes that cover the first frame in rows of four, in its pixels."""
        height, width = self.frames[0].shape[:2]
        w, h = width / 4, height / -(-count // 4)
        return tuple((i % 4 * w, i // 4 * h, (i % 4 + 1) * w, (i // 4 + 1) * h) for i in range(count))

"""What every row measures: one bundle, the recording's frames, and the least time that its work could take."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pixel_perception.benchmark import roofline
from pixel_perception.bundle import MANIFEST, Bundle, file_digest
from pixel_perception.commands import read_image, share
from pixel_perception.errors import PerceptionError
from pixel_perception.geometry import Letterbox
from pixel_perception.perception import Perception
from pixel_perception.runtime.backends import open_backend
from pixel_perception.runtime.language import Answer, Prompt
from pixel_perception.runtime.session import Backend
from pixel_perception.runtime.vision import Encoded
from pixel_perception.types import Query, Standing


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
    frames: int = 12
    """Of the recording, that are followed."""


class Network:
    """What every subject has: a network on a backend of this runtime, which rows of torch compare with the same one in torch, and
    the least time that its work could take. A subclass has what `torch_rows` asks for."""

    def __init__(self, backend: Backend, effort: Effort) -> None:
        self.backend, self.threads, self.effort = backend, backend.threads, effort
        self.files = sorted(share("demo/recording").glob("9*.jpg"))[: effort.frames]
        self.frames = [read_image(str(path)) for path in self.files]

    @property
    def on_cpu(self) -> bool:
        """Whether the processor does the work."""
        return self.backend.name == "onnxruntime-cpu"

    @cached_property
    def device(self):
        """Where torch runs to be compared with. Raises PerceptionError where torch does not know the device."""
        from pixel_perception.benchmark.torch_side import Device

        return Device.of(self.on_cpu, self.threads, self.half)

    @cached_property
    def torch_language(self):
        """The language model in torch, with the very weights of the graph. Raises PerceptionError where they do not fit into memory."""
        from pixel_perception.benchmark.torch_side import Llama
        from pixel_perception.export.fused_language import FusedLanguage
        from pixel_perception.export.gpu_graph import load_graph

        weights = FusedLanguage(load_graph(self.language_graph), self.language_graph)
        embeddings = self.embed(range(weights.shape.vocabulary))
        return Llama.of(weights.shape, ChainMap({"embeddings": embeddings}, weights), self.device)

    @cached_property
    def token(self) -> roofline.Work:
        """What reading one token takes."""
        return roofline.token_of(self.language_graph)

    @cached_property
    def machine(self) -> roofline.Machine:
        """What the device can do that the backend uses. Raises PerceptionError where that cannot be measured."""
        if self.on_cpu:
            return roofline.measure(self.threads)
        from pixel_perception.benchmark.torch_side import measure

        return measure()

    def least(self, *steps: tuple[int, int]) -> float:
        """Least seconds of language steps of (positions read, positions whose logits are wanted): the weights read once from
        memory, or the products at the peak of arithmetic, whichever takes longer."""
        logits = 2.0 * self.vocabulary * self.decoder.hidden
        return sum(max(self.token.weights / self.machine.bandwidth,
                       (self.token.operations * count - logits * (count - asked)) / self.machine.language)
                   for count, asked in steps)  # fmt: skip


def backend_of(name: str, threads: int | None) -> Backend:
    """The backend of a name, itself from the first moment on: TensorRT builds its engines before anything is measured."""
    if name == "tensorrt":
        from pixel_perception.runtime.tensorrt import TensorRt

        return TensorRt()
    return open_backend(name, threads)


class Subject(Network):
    """A bundle opened for measuring, with the frames that are asked about."""

    half = False
    """Whether torch must hold its language in half precision on a CPU too."""

    def __init__(self, bundle: Bundle, backend: Backend, effort: Effort, instruction: str, parts: str | None = None) -> None:
        """`instruction`: one with three targets in the first frame; `parts`: folder that the bundle was assembled from, the
        shipped one by default."""
        super().__init__(backend, effort)
        self.bundle, self.query, self._parts = bundle, Query(instruction), parts
        self.perception = Perception(bundle, backend)
        self.language, self.vision = self.perception.language, self.perception.vision
        self.decoder, self.embed = self.language.decoder, self.language.vocabulary.embed
        self.language_graph = bundle.graph("language_model")
        self.title = f"{bundle.manifest.name} with {bundle.manifest.graphs['language_model'].precision} language"

    @cached_property
    def encoded(self) -> Encoded:
        """The first frame, with everything that questions share."""
        encoded = self.perception.encode(self.frames[0])
        self.perception.prefix(encoded)
        return encoded

    @cached_property
    def standing(self) -> Standing:
        """The instruction as the first frame understood it. Raises PerceptionError where it found no target."""
        standing = self.perception.ask(self.frames[0], self.query).standing
        if standing is None:
            raise PerceptionError("INVALID_QUERY", f"--instruction: expected one with targets, found that {self.query.text!r} has none.")
        return standing

    def see(self, frame: np.ndarray) -> np.ndarray:
        """Mask logits (targets, h, w) of the standing instruction in a frame."""
        return self.vision.decode(self.vision.encode(frame), self.standing.queries)[0]

    def fed(self, frame: np.ndarray) -> dict[str, np.ndarray]:
        """What `torch_pixels` reads of a frame."""
        image = self.bundle.manifest.image
        box = Letterbox(frame.shape[1], frame.shape[0], image.width, image.height, image.fill)
        return {"image": box.image(frame)[None], "queries": self.standing.queries[None]}

    @cached_property
    def torch_pixels(self):
        """The network's standing instruction as a torch module. Raises PerceptionError where the bundle has no parts to compare with."""
        from pixel_perception.benchmark.torch_side import CompactPixels
        from pixel_perception.export.command import load_run

        made_of = self.bundle.manifest.provenance.get("assembled", {}).get("parts")
        if made_of is None:
            raise PerceptionError("INVALID_BUNDLE", "the bundle names no parts that it was assembled from (provenance.assembled).")
        parts = Path(self._parts) if self._parts else share("weights/compact")
        found = file_digest(parts / MANIFEST)
        if found != made_of:
            raise PerceptionError("INVALID_BUNDLE", f"{parts / MANIFEST}: expected the parts that the bundle was assembled from, SHA-256 "
                                                    f"{made_of[:12]}, found {found[:12]}; name them with --parts.")
        return CompactPixels(load_run(parts))

    @property
    def vocabulary(self) -> int:
        """Tokens that any text may hold."""
        return len(self.language.vocabulary.embeddings) - len(self.bundle.manifest.tokens.segments) - 1

    def operators(self, count: int, before: int) -> dict[str, float]:
        """Milliseconds of the language's operators while `count` positions are read after `before`."""
        return self.profile("language_model", self._zeros(count, before))

    def profile(self, graph: str, feeds: dict[str, np.ndarray]) -> dict[str, float]:
        """Milliseconds of a graph's operators; nothing on another device, which ONNX Runtime's profile does not see into."""
        return roofline.operators(self.bundle.graph(graph), feeds, self.threads) if self.on_cpu else {}

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
        return sum(roofline.operations_of(self.bundle.graph(name), given) for name, given in feeds.items())

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

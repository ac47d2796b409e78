"""A PixelLM of any shape with random weights, its language in int4: how fast a network of that size would be, before there is one."""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pixel_perception.benchmark import roofline
from pixel_perception.benchmark.subject import Effort, Network
from pixel_perception.errors import PerceptionError
from pixel_perception.export.base_weights import DecoderShape
from pixel_perception.export.llama_folder import NAMES, decoder_shape, graph_bytes, write_language
from pixel_perception.export.paper_graphs import Part, pixellm_parts
from pixel_perception.geometry import Letterbox
from pixel_perception.models.configurations import configuration, read, to_dict
from pixel_perception.models.perception_model import PerceptionModel
from pixel_perception.models.pixellm.config import PixelLMConfig
from pixel_perception.runtime.session import Backend, Decoder, Session
from pixel_perception.writing import replacing

PRECISION = "int4"
SHORT = Effort(prefill=64, steps=16, frames=2)
"""For networks of which a token may take a second and a frame ten."""
TARGETS = 3
PIXELS = ("image_encoder", "pixel_decoder")
"""The graphs that a standing instruction runs."""
LANGUAGE_ROOM, VISION_ROOM = 1.8, 3.0
"""Memory that writing and loading a graph takes, in sizes of its file: for vision torch's own weights are among them."""


def named(shape: str) -> tuple[PixelLMConfig, str]:
    """A PixelLM's configuration of a name or a file, and what to call it.

    Raises PerceptionError INVALID_QUERY for another kind of network, and ConfigurationError.
    """
    path = Path(shape)
    config = read(path) if path.suffix == ".json" else configuration(shape)
    if not isinstance(config, PixelLMConfig):
        raise PerceptionError("INVALID_QUERY", f"--shape: expected a PixelLM, found {shape}, which is another network.")
    return config, path.stem


class RandomLlama(Mapping):
    """Weights by the names of `base_weights.BaseLanguage`, fp32, drawn when asked for and the same each time, so that memory holds
    one matrix."""

    def __init__(self, shape: DecoderShape, spread: float, purpose: str = "") -> None:
        """`spread`: standard deviation of the matrices; norms are ones. `purpose`: what a progress bar says while all are asked for."""
        self.shape, self._spread = shape, spread
        width, kv, hidden, wide = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.hidden, shape.intermediate
        layer = {"q": (width, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, width), "gate": (wide, hidden),
                 "up": (wide, hidden), "down": (hidden, wide), "attention_norm": (hidden,), "mlp_norm": (hidden,)}  # fmt: skip
        self._sizes = dict.fromkeys(("embeddings", "output"), (shape.vocabulary, hidden)) | {"final_norm": (hidden,)}
        self._sizes |= {f"layers.{i}.{name}": layer[name] for i in range(shape.layers) for name in NAMES}
        self._progress = tqdm(total=len(self) - 1, desc=purpose, unit="matrix", disable=None if purpose else True)

    def __getitem__(self, name: str) -> np.ndarray:
        size = self._sizes[name]
        self._progress.update()
        if len(size) == 1:
            return np.ones(size, np.float32)
        drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(size, np.float32)
        drawn *= np.float32(self._spread)
        return drawn

    def __iter__(self) -> Iterator[str]:
        return iter(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)


class StandingPixels(nn.Module):
    """A PixelLM's standing instruction: image (1, side, side, 3) uint8, fitted (1, 2) and targets (T, L, dim) to mask logits (T, h, w)
    of the frame."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        super().__init__()
        self.encoder, self.decoder = (parts[name].module for name in PIXELS)

    def forward(self, image: Tensor, fitted: Tensor, targets: Tensor) -> Tensor:
        maps = self.encoder(image, fitted)[2]
        return self.decoder(targets, maps, torch.zeros(len(targets), dtype=torch.int64, device=maps.device))[0]


class Shape(Network):
    """A PixelLM with random weights. Its graphs are written when they are first needed."""

    half = True  # 7B in fp32 are 27 GB

    def __init__(self, config: PixelLMConfig, name: str, folder: Path, backend: Backend, effort: Effort) -> None:
        """`folder`: where graphs are kept, and looked for."""
        super().__init__(backend, effort)
        self.config, self.name, self.title = config, name, f"{name} with random weights, language in {PRECISION}"
        digest = hashlib.sha256(json.dumps(to_dict(config)).encode()).hexdigest()
        self._folder = folder / f"{name}-{digest[:12]}"
        self._llama = decoder_shape(config.language.llama().to_dict(), name, config.language.context)
        self.vocabulary = config.codebook.first
        targets = np.random.default_rng(0).standard_normal((TARGETS, config.codebook.levels, config.dim), np.float32)
        self._targets = {"targets": targets, "image_of_target": np.zeros(TARGETS, np.int64)}

    @cached_property
    def language_graph(self) -> Path:
        """The language graph. Raises PerceptionError where it does not fit on the disk or into memory."""
        folder = self._folder / "language"
        self._expect_room(folder, graph_bytes(self._llama, PRECISION), LANGUAGE_ROOM, f"language graph in {PRECISION}")
        if not folder.is_dir():
            write_language(RandomLlama(self._llama, self.config.language.spread, "language graph"), folder, PRECISION)
        return folder / "language_model.onnx"

    @cached_property
    def decoder(self) -> Decoder:
        """The language model on this runtime."""
        return self.backend.decoder(self.language_graph)

    def embed(self, tokens: Sequence[int]) -> np.ndarray:
        """(n, hidden) float32."""
        return self._embeddings[np.asarray(tokens)].astype(np.float32)

    @cached_property
    def _embeddings(self) -> np.ndarray:
        return RandomLlama(self._llama, self.config.language.spread)["embeddings"].astype(np.float16)  # as a bundle holds them

    @cached_property
    def _parts(self) -> dict[str, Part]:
        """The network around its language model in torch: the same each time."""
        book = replace(self.config.codebook, first=0)
        without = replace(self.config, codebook=book, language=replace(self.config.language, layers=0, vocabulary=book.length))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return pixellm_parts(PerceptionModel.of(without).eval())

    @cached_property
    def torch_pixels(self) -> StandingPixels:
        """The standing instruction in torch."""
        return StandingPixels(self._parts)

    @cached_property
    def _pixels(self) -> dict[str, Path]:
        """The graphs of a standing instruction. Raises PerceptionError where they do not fit on the disk or into memory."""
        folder = self._folder / "pixels"
        size = sum(p.numel() * p.itemsize for p in self.torch_pixels.parameters())
        self._expect_room(folder, size, VISION_ROOM, "vision graphs")
        if not folder.is_dir():
            with replacing(folder) as work:
                for name in tqdm(PIXELS, desc="vision graphs", unit="graph", disable=None):
                    self._parts[name].export(work / f"{name}.onnx")
        return {name: folder / f"{name}.onnx" for name in PIXELS}

    @cached_property
    def _sessions(self) -> list[Session]:
        return [self.backend.session(path) for path in self._pixels.values()]

    def fed(self, frame: np.ndarray) -> dict[str, np.ndarray]:
        """What `torch_pixels` reads of a frame."""
        return self._letterboxed(frame) | {"targets": self._targets["targets"]}

    def see(self, frame: np.ndarray) -> np.ndarray:
        """Mask logits (targets, h, w) of the standing instruction in a frame."""
        encoder, decoder = self._sessions
        maps = encoder.run(self._letterboxed(frame))["maps"]
        return decoder.run(self._targets | {"maps": maps})["mask_logits"]

    def pixels(self, targets: int) -> float:
        """Operations of encoding a frame and decoding the masks of all targets."""
        seen = self._letterboxed(self.frames[0])
        encoder, decoder = self._pixels.values()
        maps = self._sessions[0].run(seen)["maps"]
        return roofline.operations_of(encoder, seen) + roofline.operations_of(decoder, self._targets | {"maps": maps})

    def _letterboxed(self, frame: np.ndarray) -> dict[str, np.ndarray]:
        side = self.config.vision.side
        box = Letterbox(frame.shape[1], frame.shape[0], side, side)
        return {"image": box.image(frame)[None], "fitted": np.array([box.valid[::-1]])}

    def _expect_room(self, folder: Path, size: int, room: float, what: str) -> None:
        """Raises PerceptionError OUT_OF_MEMORY where a file of `size` bytes does not fit on the disk, or `room` times as much into
        memory."""
        free = psutil.virtual_memory().available
        if room * size > free:
            raise PerceptionError("OUT_OF_MEMORY", f"{self.name}: making and loading its {what} takes {room * size / 1e9:.1f} GB of "
                                                   f"memory, {free / 1e9:.1f} GB are free.")
        if folder.is_dir():
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        disk = shutil.disk_usage(folder.parent).free
        if 1.05 * size > disk:
            raise PerceptionError("OUT_OF_MEMORY", f"{folder.parent}: expected {1.05 * size / 1e9:.1f} GB of free space for the {what} of "
                                                   f"{self.name}, found {disk / 1e9:.1f} GB; name another place with --graphs or $TMPDIR.")

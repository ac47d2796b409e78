"""Parts of a network as ONNX graphs, with the sizes of their configuration; here those of PixelLM around its language model.

Images B, targets or regions of each P, and words T are dynamic; the side of the image is the configuration's. Each graph comes
with examples of any such sizes, to trace it with and to compare it with torch (`differences`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from pixel_perception.export.torch_graph import Axes, torch_graph
from pixel_perception.models.pixellm.images import MEAN, STD
from pixel_perception.models.pixellm.model import PixelLM
from pixel_perception.runtime.agreement import cosine

TRACED, COMPARED = (2, 3), ((1, 1), (3, 2))
"""Images, and targets or regions of each, that a graph is traced with and compared at."""


@dataclass(frozen=True)
class Part:
    """One graph to be: a module, its inputs for B images with P targets or regions each, their dynamic axes, its outputs."""

    module: nn.Module
    examples: Callable[[int, int], dict[str, Tensor | list[Tensor]]]
    axes: dict[str, Axes]
    outputs: tuple[str, ...]
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Of the tensors of inputs that are lists."""

    def export(self, path: Path) -> onnx.ModelProto:
        """Write the graph to `path` and its weights to a file beside it (.data); returns the graph without them."""
        beside = path.with_name(f"{path.name}.data")
        graph = torch_graph(self.module, self.examples(*TRACED), self.axes, self.outputs, self.names, beside)
        onnx.save(graph, path)
        onnx.checker.check_model(path, full_check=True)
        return graph

    def differences(self, path: Path) -> dict[str, float]:
        """Output -> largest difference from torch, at all sizes of `COMPARED`, as a part of the output's largest magnitude (at least 1)."""
        return {name: max(apart(*pair) for pair in pairs) for name, pairs in self._pairs(path).items()}

    def cosines(self, path: Path) -> dict[str, float]:
        """Output -> least cosine with torch of the vectors on its last axis, at all sizes of `COMPARED`."""
        return {name: min(float(cosine(*pair).min()) for pair in pairs) for name, pairs in self._pairs(path).items()}

    def _pairs(self, path: Path) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
        """Output -> what the graph says and what torch says, at all sizes of `COMPARED`."""
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in self.outputs}
        for sizes in COMPARED:
            inputs = self.examples(*sizes)
            with torch.inference_mode():
                expected = self.module(**inputs)
            flat = {name: [value] if isinstance(value, Tensor) else value for name, value in inputs.items()}
            feeds = {name: t.numpy() for key, values in flat.items() for name, t in zip(self.names.get(key, (key,)), values, strict=True)}
            actual = session.run(self.outputs, feeds)
            for name, ours, theirs in zip(self.outputs, actual, expected, strict=True):
                found[name].append((ours, theirs.numpy()))
        return found


def apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference as a part of the largest magnitude (at least 1); infinite where shapes differ or a value is not finite."""
    if ours.shape != theirs.shape or not np.isfinite(ours).all():
        return np.inf
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    return float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max()))


class Wrapper(nn.Module):
    """A graph to be: what `forward` makes of its inputs with a model's own parts."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model


class _PixelLMImage(Wrapper):
    def __init__(self, model: PixelLM):
        super().__init__(model)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(STD)[:, None, None])

    def forward(self, image: Tensor, fitted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        steps = torch.arange(self.model.config.vision.side)
        valid = (steps < fitted[:, :1])[:, :, None] & (steps < fitted[:, 1:])[:, None]
        frame = (image.permute(0, 3, 1, 2).float() - self.mean) / self.std * valid[:, None]
        return self.model.see(frame, valid)


class _TokenFusion(Wrapper):
    def forward(self, hidden_states: Tensor) -> tuple[Tensor]:
        return (self.model.fusion(self.model.to_target(hidden_states)),)


class _PixelDecoder(Wrapper):
    def forward(self, targets: Tensor, maps: Tensor, image_of_target: Tensor) -> tuple[Tensor]:
        return (self.model.decoder(targets, maps, image_of_target).combined,)


def pixellm_parts(model: PixelLM) -> dict[str, Part]:
    """Graph name -> part of all but the language model, of a model in evaluation mode and fp32.

    `image` is the letterboxed frame (`pixellm.images.prepare`) before it is normalised, `fitted` what of it is image (height, width);
    `mask_logits` are those of the frame.
    """
    config = model.config
    side, book, grid = config.vision.side, config.codebook, config.vision.grid

    def images(b: int, p: int) -> dict[str, Tensor]:
        fitted = torch.tensor([[side, side * 3 // 4], [side // 2, side], [side, side]])[torch.arange(b) % 3]
        return {"image": torch.randint(0, 256, (b, side, side, 3), dtype=torch.uint8), "fitted": fitted}

    def decoded(b: int, p: int) -> dict[str, Tensor]:
        return {"targets": torch.randn(b * p, book.levels, config.dim), "maps": torch.randn(b, book.levels, config.dim, grid, grid),
                "image_of_target": torch.arange(b).repeat_interleave(p)}  # fmt: skip

    return {
        "image_encoder": Part(_PixelLMImage(model), images, {"image": {0: "batch"}, "fitted": {0: "batch"}},
                              ("image_tokens", "image_tokens_valid", "maps")),
        "token_fusion": Part(
            _TokenFusion(model), lambda b, p: {"hidden_states": torch.randn(b * p, book.length, config.language.dim)},
            {"hidden_states": {0: "targets"}}, ("fused",),
        ),
        "pixel_decoder": Part(_PixelDecoder(model), decoded, {"targets": {0: "targets"}, "maps": {0: "batch"},
                                                              "image_of_target": {0: "targets"}}, ("mask_logits",)),
    }  # fmt: skip

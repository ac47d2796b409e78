"""The parts of PixelLM and PixelLLM around their language models as ONNX graphs, with the sizes of their configuration.

Images B, targets or regions of each P, and words T are dynamic; the side of the image is the configuration's. Each graph comes
with examples of any such sizes, to trace it with and to compare it with torch (`differences`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from pixel_perception.export.torch_graph import Axes, torch_graph
from pixel_perception.models.pixelllm.model import Features, PixelLLM, VisualTokens, Words
from pixel_perception.models.pixellm.images import MEAN, STD
from pixel_perception.models.pixellm.model import PixelLM

TRACED, COMPARED = (2, 3), ((1, 1), (3, 2))
"""Images, and targets or regions of each, that a graph is traced with and compared at."""


@dataclass(frozen=True)
class Part:
    """One graph to be: a module, its inputs for B images with P targets or regions each, their dynamic axes, its outputs."""

    module: nn.Module
    examples: Callable[[int, int], dict[str, Tensor]]
    axes: dict[str, Axes]
    outputs: tuple[str, ...]

    def export(self, path: Path) -> onnx.ModelProto:
        """Write the graph to `path` and its weights to a file beside it (.data); returns the graph without them."""
        graph = torch_graph(self.module, self.examples(*TRACED), self.axes, self.outputs, beside=path.with_name(f"{path.name}.data"))
        onnx.save(graph, path)
        onnx.checker.check_model(path, full_check=True)
        return graph

    def differences(self, path: Path) -> dict[str, float]:
        """Output -> largest difference from torch, at all sizes of `COMPARED`, as a part of the output's largest magnitude (at least 1)."""
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found = dict.fromkeys(self.outputs, 0.0)
        for sizes in COMPARED:
            inputs = self.examples(*sizes)
            with torch.inference_mode():
                expected = self.module(**inputs)
            actual = session.run(self.outputs, {name: t.numpy() for name, t in inputs.items()})
            for name, ours, theirs in zip(self.outputs, actual, expected, strict=True):
                found[name] = max(found[name], apart(ours, theirs.numpy()))
        return found


def apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference as a part of the largest magnitude (at least 1); infinite where shapes differ or a value is not finite."""
    if ours.shape != theirs.shape or not np.isfinite(ours).all():
        return np.inf
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    return float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max()))


class _Part(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model


class _PixelLMImage(_Part):
    def __init__(self, model: PixelLM):
        super().__init__(model)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(STD)[:, None, None])

    def forward(self, image: Tensor, fitted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        steps = torch.arange(self.model.config.vision.side)
        valid = (steps < fitted[:, :1])[:, :, None] & (steps < fitted[:, 1:])[:, None]
        frame = (image.permute(0, 3, 1, 2).float() - self.mean) / self.std * valid[:, None]
        return self.model.see(frame, valid)


class _TokenFusion(_Part):
    def forward(self, hidden_states: Tensor) -> tuple[Tensor]:
        return (self.model.fusion(self.model.to_target(hidden_states)),)


class _PixelDecoder(_Part):
    def forward(self, targets: Tensor, maps: Tensor, image_of_target: Tensor) -> tuple[Tensor]:
        return (self.model.decoder(targets, maps, image_of_target).combined,)


def _pixellm(model: PixelLM) -> dict[str, Part]:
    """`image` is the letterboxed frame (`pixellm.images.prepare`) before it is normalised, `fitted` what of it is image (height, width);
    `mask_logits` are those of the frame."""
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


class _PixelLLMImage(_Part):
    def forward(self, image: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.model.encode(image, valid)
        return seen.joined, seen.spatial


class _PromptFeatures(_Part):
    def forward(self, joined: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        visual = self.model.extract(Features(joined, joined, joined, boxes), boxes)
        return visual.extracted, visual.projected


class _LocationHead(_Part):
    def forward(self, hidden_states: Tensor) -> tuple[Tensor]:
        return (self.model.location_head(hidden_states)[0],)


class _MaskDecoder(_Part):
    def forward(self, spatial: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.masks(Features(spatial, spatial, spatial, boxes), boxes)


class _AdaptedMaskDecoder(_Part):
    def forward(self, spatial: Tensor, boxes: Tensor, visual_tokens: Tensor, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        visual, words = VisualTokens(visual_tokens, visual_tokens), Words(hidden_states, hidden_states)
        return self.model.masks(Features(spatial, spatial, spatial, boxes), boxes, visual, words)


def _pixelllm(model: PixelLLM) -> dict[str, Part]:
    """`image` is the padded square (B, 3, side, side) in 0..255, `valid` what of it is image (width, height); `boxes` are pixels of it.
    `visual_tokens` of the mask decoder are those that the adapter was trained with: projected with T5, extracted with the small decoder."""
    config, side = model.config, model.config.image_size
    joined, prompt, language = config.semantic.width + config.spatial.output, config.spatial.output, config.language.width
    spatial_grid = side // config.spatial.patch
    grid = max(side // config.semantic.patch, spatial_grid)

    def images(b: int, p: int) -> dict[str, Tensor]:
        valid = torch.tensor([[side, side * 3 // 4], [side // 2, side], [side, side]])[torch.arange(b) % 3]
        return {"image": 255 * torch.rand(b, 3, side, side), "valid": valid}

    def boxes(b: int, p: int) -> Tensor:
        corners = torch.rand(b, p, 2, 2) * side
        return torch.cat([corners.amin(2), corners.amax(2)], -1)

    regions, words = {0: "batch", 1: "regions"}, {0: "batch", 1: "regions", 2: "words"}
    parts = {
        "image_encoder": Part(_PixelLLMImage(model), images, {"image": {0: "batch"}, "valid": {0: "batch"}}, ("joined", "spatial")),
        "prompt_feature_extractor": Part(
            _PromptFeatures(model), lambda b, p: {"joined": torch.randn(b, joined, grid, grid), "boxes": boxes(b, p)},
            {"joined": {0: "batch"}, "boxes": regions}, ("extracted", "projected"),
        ),
    }  # fmt: skip
    if model.location_head is not None:
        parts["location_head"] = Part(_LocationHead(model), lambda b, p: {"hidden_states": torch.randn(b * p, language)},
                                      {"hidden_states": {0: "words"}}, ("points",))  # fmt: skip

    def boxed(b: int, p: int) -> dict[str, Tensor]:
        return {"spatial": torch.randn(b, prompt, spatial_grid, spatial_grid), "boxes": boxes(b, p)}

    def adapted(b: int, p: int) -> dict[str, Tensor]:
        return boxed(b, p) | {"visual_tokens": torch.randn(b, p, config.features.queries, model.mask_adapter.visual[0].normalized_shape[0]),
                              "hidden_states": torch.randn(b, p, b + p, language)}  # fmt: skip

    if model.mask_decoder is not None:
        axes, outputs = {"spatial": {0: "batch"}, "boxes": regions}, ("mask_logits", "quality")
        if model.mask_adapter is None:
            parts["mask_decoder"] = Part(_MaskDecoder(model), boxed, axes, outputs)
        else:
            axes |= {"visual_tokens": regions, "hidden_states": words}
            parts["mask_decoder"] = Part(_AdaptedMaskDecoder(model), adapted, axes, outputs)
    return parts


def vision_parts(model: PixelLM | PixelLLM) -> dict[str, Part]:
    """Graph name -> part, of a model in evaluation mode and fp32. The model's `language` is not needed."""
    return _pixellm(model) if isinstance(model, PixelLM) else _pixelllm(model)

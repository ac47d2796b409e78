"""PixelLLM as ONNX graphs: what it sees, what it proposes, what it writes and where that lies.

The detector is cut where a graph would need as many steps as there are boxes: `proposals` ends before the best are chosen and
suppressed, `second_stage` before that is done again; `runtime.pixelllm` does both. Either language model is an encoder, which reads
visual tokens and a text prompt once, and a decoder with a cache:

    language_encoder   visual (B, N, C), context (B, M) int64, 0 where padded
                       -> valid (B, N + M) bool, memory.{i}.key/value (B, heads, N + M, D): what layer i looks at of them
    language_decoder   tokens (B, T) int64, valid, memory.{i}.key/value, past.{i}.key/value (B, heads, P, D), P = 0 at first
                       -> logits (B, T, V), hidden_states (B, T, C) before the vocabulary, present.{i}.key/value (B, heads, P + T, D)

T5's decoder also takes `real` (B, T) bool: a token that is no part of the text sees nothing (`T5.step`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pixel_perception.export.paper_graphs import Part, Wrapper
from pixel_perception.models.pixelllm.boxes import clip_boxes, decode_boxes, roi_align
from pixel_perception.models.pixelllm.memory import Memory
from pixel_perception.models.pixelllm.model import Features, PixelLLM, VisualTokens, Words
from pixel_perception.models.pixelllm.t5 import T5, LoraLinear, T5Config
from pixel_perception.models.pixelllm.text_decoder import TextDecoder

READ = 5
"""Prefix tokens in the decoders' examples; any number can be read."""


class _Image(Wrapper):
    def forward(self, image: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.model.encode(image.permute(0, 3, 1, 2).float(), valid)
        return seen.joined, seen.spatial


class _PromptFeatures(Wrapper):
    def forward(self, joined: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        visual = self.model.extract(Features(joined, joined, joined, boxes), boxes)
        return visual.extracted, visual.projected


class _Proposals(Wrapper):
    def forward(self, joined: Tensor) -> tuple[Tensor, ...]:
        detector = self.model.detector
        levels = detector.pyramid(joined)
        return *detector.candidates(*detector.head(levels)), *levels


class _SecondStage(Wrapper):
    def forward(self, levels: list[Tensor], boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        second = self.model.detector.second
        # The module looks into one level for each box; a graph into all, and forgets what it should not have seen.
        level = second.level(boxes)
        crops = sum(roi_align(features[0], boxes / 2**number, second.side) * (level == number)[:, None, None, None]
                    for number, features in zip(second.levels, levels, strict=True))  # fmt: skip
        logits, change = second.judge(crops)
        boxes = decode_boxes(change, boxes, second.weights)
        return clip_boxes(boxes, (self.model.config.image_size,) * 2), (logits.softmax(-1)[:, 1] * scores).sqrt()


class _LocationHead(Wrapper):
    def forward(self, hidden_states: Tensor) -> tuple[Tensor]:
        return (self.model.location_head(hidden_states)[0],)


class _MaskDecoder(Wrapper):
    def forward(self, spatial: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.masks(Features(spatial, spatial, spatial, boxes), boxes)


class _AdaptedMaskDecoder(Wrapper):
    def forward(self, spatial: Tensor, boxes: Tensor, visual_tokens: Tensor, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        visual, words = VisualTokens(visual_tokens, visual_tokens), Words(hidden_states, hidden_states)
        return self.model.masks(Features(spatial, spatial, spatial, boxes), boxes, visual, words)


class _Encoder(Wrapper):
    def forward(self, visual: Tensor, context: Tensor) -> tuple[Tensor, ...]:
        memory = self.model.encode(visual, context)
        return memory.valid, *_flat(memory.layers)


class _T5Decoder(Wrapper):
    def forward(self, tokens: Tensor, real: Tensor, valid: Tensor, memory: list[Tensor], past: list[Tensor]) -> tuple[Tensor, ...]:
        logits, states, grown = self.model.step(tokens, Memory(_pairs(memory), valid), _pairs(past), real)
        return logits, states, *_flat(grown)


class _TextDecoder(Wrapper):
    def forward(self, tokens: Tensor, valid: Tensor, memory: list[Tensor], past: list[Tensor]) -> tuple[Tensor, ...]:
        # The module keeps prefix and words in one cache; here the prefix, which does not grow, stays apart.
        before = [torch.cat(pair, 2) for pair in zip(memory, past, strict=True)]
        logits, states, grown = self.model.step(tokens, Memory(_pairs(memory), valid), _pairs(before))
        return logits, states, *(t[:, :, memory[0].shape[2] :] for t in _flat(grown))


def _pairs(tensors: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(tensors[::2], tensors[1::2], strict=True))


def _flat(pairs: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [t for pair in pairs for t in pair]


def pixelllm_parts(model: PixelLLM) -> dict[str, Part]:
    """Graph name -> part, of a model in evaluation mode and fp32.

    `image` is the padded square (B, side, side, 3) uint8, `valid` what of it is image (width, height); `boxes` are pixels of it.
    `extracted` and `projected` are the visual tokens of a region, as the extractor made them and in the language model's width;
    the mask decoder takes those that its adapter was trained with. `points` are fractions of the valid image.
    """
    return _seeing(model) | (_detecting(model) if model.detector else {}) | _placing(model) | language_parts(model.language)


def _boxes(side: int, *shape: int) -> Tensor:
    corners = torch.rand(*shape, 2, 2) * side
    return torch.cat([corners.amin(-2), corners.amax(-2)], -1)


def _joined(model: PixelLLM, b: int) -> Tensor:
    config = model.config
    grid = config.image_size // min(config.semantic.patch, config.spatial.patch)
    return torch.randn(b, config.semantic.width + config.spatial.output, grid, grid)


def _seeing(model: PixelLLM) -> dict[str, Part]:
    side = model.config.image_size

    def images(b: int, p: int) -> dict[str, Tensor]:
        valid = torch.tensor([[side, side * 3 // 4], [side // 2, side], [side, side]])[torch.arange(b) % 3]
        return {"image": torch.randint(0, 256, (b, side, side, 3), dtype=torch.uint8), "valid": valid}

    return {
        "image_encoder": Part(_Image(model), images, {"image": {0: "batch"}, "valid": {0: "batch"}}, ("joined", "spatial")),
        "prompt_feature_extractor": Part(
            _PromptFeatures(model), lambda b, p: {"joined": _joined(model, b), "boxes": _boxes(side, b, p)},
            {"joined": {0: "batch"}, "boxes": {0: "batch", 1: "regions"}}, ("extracted", "projected"),
        ),
    }  # fmt: skip


def _detecting(model: PixelLLM) -> dict[str, Part]:
    config, side = model.detector.config, model.config.image_size
    levels = tuple(f"level_{stride}" for stride in config.strides)

    def cut(b: int, p: int) -> dict[str, Tensor | list[Tensor]]:
        with torch.inference_mode():
            seen = model.detector.pyramid(_joined(model, 1))
        return {"levels": [level.clone() for level in seen], "boxes": _boxes(side, b * p), "scores": torch.rand(b * p)}

    return {
        "proposals": Part(_Proposals(model), lambda b, p: {"joined": _joined(model, b)}, {"joined": {0: "batch"}},
                          ("boxes", "scores", *levels)),
        "second_stage": Part(_SecondStage(model), cut, {"boxes": {0: "regions"}, "scores": {0: "regions"}}, ("refined", "judged"),
                             {"levels": levels}),
    }  # fmt: skip


def _placing(model: PixelLLM) -> dict[str, Part]:
    config, side, width, parts = model.config, model.config.image_size, model.config.language.width, {}
    if model.location_head is not None:
        parts["location_head"] = Part(_LocationHead(model), lambda b, p: {"hidden_states": torch.randn(b * p, width)},
                                      {"hidden_states": {0: "words"}}, ("points",))  # fmt: skip
    if model.mask_decoder is None:
        return parts
    grid, regions = side // config.spatial.patch, {0: "batch", 1: "regions"}

    def boxed(b: int, p: int) -> dict[str, Tensor]:
        return {"spatial": torch.randn(b, config.spatial.output, grid, grid), "boxes": _boxes(side, b, p)}

    def adapted(b: int, p: int) -> dict[str, Tensor]:
        channels = model.mask_adapter.visual[0].normalized_shape[0]
        return boxed(b, p) | {"visual_tokens": torch.randn(b, p, config.features.queries, channels),
                              "hidden_states": torch.randn(b, p, b + p, width)}  # fmt: skip

    axes, outputs = {"spatial": {0: "batch"}, "boxes": regions}, ("mask_logits", "quality")
    if model.mask_adapter is None:
        return parts | {"mask_decoder": Part(_MaskDecoder(model), boxed, axes, outputs)}
    axes |= {"visual_tokens": regions, "hidden_states": regions | {2: "words"}}
    tokens = "projected" if isinstance(config.language, T5Config) else "extracted"
    return parts | {"mask_decoder": Part(_AdaptedMaskDecoder(model), adapted, axes, outputs, {"visual_tokens": (tokens,)})}


def cache_names(stem: str, layers: int) -> tuple[str, ...]:
    """`{stem}.0.key`, `{stem}.0.value`, `{stem}.1.key`, ..."""
    return tuple(f"{stem}.{i}.{kind}" for i in range(layers) for kind in ("key", "value"))


def language_parts(model: T5 | TextDecoder) -> dict[str, Part]:
    """Parts "language_encoder" and "language_decoder" of a language model in evaluation mode and fp32."""
    config, t5 = model.config, isinstance(model, T5)
    size = config.head_width if t5 else config.width // config.heads
    memory, past, present = (cache_names(stem, config.layers) for stem in ("memory", "past", "present"))

    def words(*shape: int) -> Tensor:
        ids = torch.randint(1, config.vocabulary, shape)
        ids[0, -1] = 0  # padding
        return ids

    def prefix(b: int, p: int) -> dict[str, Tensor]:
        return {"visual": torch.randn(b, 4 * p, config.width), "context": words(b, p + 2)}

    def cache(b: int, length: int) -> list[Tensor]:
        return [torch.randn(b, config.heads, length, size) for _ in memory]

    def step(b: int, p: int) -> dict[str, Tensor | list[Tensor]]:
        tokens = words(b, p)
        return {"tokens": tokens} | ({"real": tokens > 0} if t5 else {}) | {
            "valid": words(b, READ) > 0, "memory": cache(b, READ), "past": cache(b, p - 1)}  # fmt: skip

    stepped, read = {0: "batch", 1: "step"}, {0: "batch", 1: "read"}
    return {
        "language_encoder": Part(
            _Encoder(model), prefix, {"visual": {0: "batch", 1: "visual"}, "context": {0: "batch", 1: "context"}}, ("valid", *memory)
        ),
        "language_decoder": Part(
            (_T5Decoder if t5 else _TextDecoder)(model), step,
            {"tokens": stepped} | ({"real": stepped} if t5 else {})
            | {"valid": read, "memory": {0: "batch", 2: "read"}, "past": {0: "batch", 2: "past"}},
            ("logits", "hidden_states", *present), {"memory": memory, "past": past},
        ),
    }  # fmt: skip


def merge_lora(model: nn.Module) -> None:
    """Let every adapted matrix become W + scale * up @ down (Hu et al., LoRA, section 4.1), in place: one product less to compute."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LoraLinear):
                merged = nn.Linear(child.in_features, child.out_features, bias=False)
                merged.weight.data = child.weight.data + child.scale * (child.lora_up @ child.lora_down).data
                setattr(module, name, merged)

"""Flan-T5 (PixelLLM's language model, `models.pixelllm.t5`) as two graphs: an encoder, and a decoder with its cache.

    encoder   visual (B, N, C) fp32, context (B, M) int64, 0 where padded
              -> valid (B, N + M) bool, memory.{i}.key/value (B, heads, N + M, D): what layer i's cross-attention reads
    decoder   tokens (B, T) int64, valid, memory.{i}.key/value, past.{i}.key/value (B, heads, P, D), P = 0 at first
              -> logits (B, T, V), hidden_states (B, T, C) after the last norm, present.{i}.key/value (B, heads, P + T, D)

LoRA is computed as it is in the module; merge it first where one matrix product less counts (`merge_lora`).
"""

from __future__ import annotations

import copy
from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from pixel_perception.export.paper_graphs import COMPARED, apart
from pixel_perception.export.torch_graph import torch_graph
from pixel_perception.models.pixelllm.t5 import T5, LoraLinear, T5Memory


class _Encoder(nn.Module):
    def __init__(self, model: T5):
        super().__init__()
        self.model = model

    def forward(self, visual: Tensor, context: Tensor) -> tuple[Tensor, ...]:
        memory = self.model.encode(visual, context)
        return memory.valid, *(t for pair in memory.layers for t in pair)


class _Decoder(nn.Module):
    def __init__(self, model: T5):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, valid: Tensor, memory: list[Tensor], past: list[Tensor]) -> tuple[Tensor, ...]:
        logits, states, grown = self.model.step(tokens, T5Memory(_pairs(memory), valid), _pairs(past))
        return logits, states, *(t for pair in grown for t in pair)


def _pairs(tensors: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(tensors[::2], tensors[1::2], strict=True))


def cache_names(stem: str, layers: int) -> list[str]:
    """`{stem}.0.key`, `{stem}.0.value`, `{stem}.1.key`, ..."""
    return [f"{stem}.{i}.{kind}" for i in range(layers) for kind in ("key", "value")]


def t5_graphs(model: T5, folder: Path | None = None) -> dict[str, onnx.ModelProto]:
    """Graphs "language_encoder" and "language_decoder" of a T5 in evaluation mode, fp32.

    With a `folder` their weights are written there, to NAME.onnx.data beside where NAME.onnx is to be saved.
    """
    config = model.config
    batch, heads, width = 2, config.heads, config.head_width
    names = {stem: cache_names(stem, config.layers) for stem in ("memory", "past", "present")}

    def cache(length: int) -> list[Tensor]:
        return [torch.randn(batch, heads, length, width) for _ in names["past"]]

    encoder = torch_graph(
        _Encoder(model), {"visual": torch.randn(batch, 3, config.width), "context": torch.ones(batch, 4, dtype=torch.int64)},
        {"visual": {0: "batch", 1: "visual"}, "context": {0: "batch", 1: "context"}}, ["valid", *names["memory"]],
        beside=folder and folder / "language_encoder.onnx.data",
    )  # fmt: skip
    decoder = torch_graph(
        _Decoder(model),
        {"tokens": torch.ones(batch, 2, dtype=torch.int64), "valid": torch.ones(batch, 5, dtype=torch.bool), "memory": cache(5),
         "past": cache(3)},
        {"tokens": {0: "batch", 1: "step"}, "valid": {0: "batch", 1: "read"}, "memory": {0: "batch", 2: "read"},
         "past": {0: "batch", 2: "past"}},
        ["logits", "hidden_states", *names["present"]], {stem: names[stem] for stem in ("memory", "past")},
        folder and folder / "language_decoder.onnx.data",
    )  # fmt: skip
    return {"language_encoder": encoder, "language_decoder": decoder}


def t5_differences(model: T5, folder: Path) -> dict[str, dict[str, float]]:
    """Graph -> output -> largest difference from torch of the graphs in a folder, as `Part.differences` measures it."""
    config, found = model.config, {}
    names = {stem: cache_names(stem, config.layers) for stem in ("memory", "past", "present")}

    def compare(graph: str, module: nn.Module, inputs: dict, outputs: list[str], feeds: dict[str, Tensor]) -> list[Tensor]:
        session = onnxruntime.InferenceSession(folder / f"{graph}.onnx", providers=["CPUExecutionProvider"])
        with torch.inference_mode():
            expected = module(**inputs)
        actual = session.run(outputs, {name: t.numpy() for name, t in feeds.items()})
        before = found.setdefault(graph, dict.fromkeys(outputs, 0.0))
        for name, ours, theirs in zip(outputs, actual, expected, strict=True):
            before[name] = max(before[name], apart(ours, theirs.numpy()))
        return list(expected)

    for rows, length in COMPARED:
        inputs = {"visual": torch.randn(rows, 4 * length, config.width), "context": torch.randint(1, config.vocabulary, (rows, length + 2))}
        inputs["context"][0, -1] = 0  # padding
        valid, *memory = compare("language_encoder", _Encoder(model), inputs, ["valid", *names["memory"]], inputs)
        past = [torch.randn(rows, config.heads, length - 1, config.head_width) for _ in names["past"]]
        step = {"tokens": torch.randint(1, config.vocabulary, (rows, length)), "valid": valid}
        feeds = step | dict(zip(names["memory"], memory, strict=True)) | dict(zip(names["past"], past, strict=True))
        compare("language_decoder", _Decoder(model), step | {"memory": memory, "past": past},
                ["logits", "hidden_states", *names["present"]], feeds)  # fmt: skip
    return found


def merge_lora(model: T5) -> T5:
    """A copy whose adapted matrices hold W + scale * up @ down (Hu et al., LoRA, section 4.1), without adapters."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LoraLinear):
                merged = nn.Linear(child.in_features, child.out_features, bias=False)
                merged.weight.data = child.weight.data + child.scale * (child.lora_up @ child.lora_down).data
                setattr(module, name, merged)
    return model

"""LLaMA-family checkpoints as they are published (a folder with config.json and safetensors) as language graphs, of any size:
7B and 13B (LLaMA, Vicuna, LLaVA), grouped-query attention or not, output layer tied or not.

Weights are memory maps that are read, quantised and written one by one, so that memory holds one layer's largest matrix.
numpy and onnx only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx

from pixel_perception.errors import PerceptionError
from pixel_perception.export.base_weights import DecoderShape
from pixel_perception.export.language_graph import BLOCK, language_graph
from pixel_perception.writing import replacing

NAMES = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj", "gate": "mlp.gate_proj",
    "up": "mlp.up_proj", "down": "mlp.down_proj", "attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm",
}  # fmt: skip
WHOLE = {"embeddings": "embed_tokens", "final_norm": "norm"}
BYTES = {"int8": 1 + 4 / BLOCK, "int4": 0.5 + 4 / BLOCK, "fp32": 4.0}
"""Bytes of one weight in the graph, its share of a scale included."""


def decoder_shape(config: Mapping, where: str = "config.json", positions: int = 4096) -> DecoderShape:
    """Shape of a `config.json`; tables are made for at most `positions` positions. Raises PerceptionError INVALID_BUNDLE for
    another architecture, a missing field, or scaled rotary angles."""
    try:
        if config["model_type"] not in ("llama", "llava", "llava_llama"):
            raise _bad(f"{where}: model_type: expected llama, found {config['model_type']!r}.")
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            raise _bad(f"{where}: rope_type: expected default, found {rope.get('rope_type', rope.get('type'))!r}.")
        heads = config["num_attention_heads"]
        return DecoderShape(
            config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"], heads,
            config.get("num_key_value_heads") or heads, config.get("head_dim") or config["hidden_size"] // heads,
            config["vocab_size"], float(config["rms_norm_eps"]), float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
            min(positions, config.get("max_position_embeddings", positions)),
        )  # fmt: skip
    except KeyError as error:
        raise _bad(f"{where}: expected the field {error}, found none.") from None


class LlamaFolder(Mapping):
    """Weights by the names of `base_weights.BaseLanguage`, fp32, read when asked for."""

    def __init__(self, folder: str | Path, shape: DecoderShape | None = None, stem: str = "model", output: str = "lm_head") -> None:
        """By default the checkpoint's shape is that of its `config.json`, and its tensors have the names of transformers.

        Raises PerceptionError INVALID_BUNDLE where there is no readable checkpoint.
        """
        self.folder = Path(folder)
        self.shape = shape or _described(self.folder / "config.json")
        self._places: dict[str, tuple[Path, str, int, tuple[int, ...]]] = {}
        for file in sorted(self.folder.glob("*.safetensors")):
            self._places |= _header(file)
        whole = {name: f"{stem}.{theirs}.weight" for name, theirs in WHOLE.items()} | {"output": f"{output}.weight"}
        self._names = {name: theirs for name, theirs in whole.items() if theirs in self._places}
        for i in range(self.shape.layers):
            self._names |= {f"layers.{i}.{ours}": f"{stem}.layers.{i}.{theirs}.weight" for ours, theirs in NAMES.items()}
        if missing := [n for n in (*self._names.values(), whole["embeddings"]) if n not in self._places]:
            raise _bad(f"{self.folder}: expected the tensor {missing[0]} in *.safetensors, found {len(self._places)} others.")

    def __getitem__(self, name: str) -> np.ndarray:
        file, kind, begin, shape = self._places[self._names[name]]
        if kind == "BF16":  # the upper half of a float32
            return (np.memmap(file, np.uint16, "r", begin, shape).astype(np.uint32) << 16).view(np.float32)
        return np.memmap(file, {"F16": np.float16, "F32": np.float32}[kind], "r", begin, shape).astype(np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _described(path: Path) -> DecoderShape:
    try:
        return decoder_shape(json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError) as error:
        raise _bad(f"{path}: expected the configuration of a checkpoint ({error}).") from error


def _header(file: Path) -> dict[str, tuple[Path, str, int, tuple[int, ...]]]:
    """Tensor name -> file, type, first byte and shape (safetensors: eight bytes of length, JSON, data)."""
    try:
        with open(file, "rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(size))
        end, found = file.stat().st_size, {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, last = (8 + size + offset for offset in entry["data_offsets"])
            if last > end or entry["dtype"] not in ("F32", "F16", "BF16"):
                raise ValueError(f"{name}: {entry['dtype']} up to byte {last} of {end}")
            found[name] = (file, entry["dtype"], begin, tuple(entry["shape"]))
        return found
    except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise _bad(f"{file}: expected safetensors of F32, F16 or BF16, found: {error}") from error


def graph_bytes(shape: DecoderShape, precision: str) -> int:
    """About how large `language_model.onnx` and its data will be, to a percent."""
    width, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer = shape.hidden * (2 * width + 2 * kv + 3 * shape.intermediate)
    tables = 4 * (shape.positions * shape.head_dim + (2 * shape.layers + 1) * shape.hidden)
    return round(BYTES[precision] * (shape.layers * layer + shape.vocabulary * shape.hidden)) + tables


def write_language(weights: LlamaFolder, folder: str | Path, precision: str = "int8") -> Path:
    """Write `language_model.onnx` and `language_model.onnx.data` to a folder, in one step; returns the graph's path.

    Raises WritingError where there is no space or no permission; then nothing is left behind.
    """
    with replacing(folder) as work:
        add_language(weights, work, precision)
    return Path(folder) / "language_model.onnx"


def add_language(weights: LlamaFolder, folder: Path, precision: str) -> onnx.ModelProto:
    """The same in a folder that is being written; returns the graph without its weights."""
    path = folder / "language_model.onnx"
    with open(f"{path}.data", "wb") as beside:
        graph = language_graph(weights.shape, weights, precision, beside=beside)
    onnx.save(graph, path)
    return graph


def _bad(message: str) -> PerceptionError:
    return PerceptionError("INVALID_BUNDLE", message)

"""llama.cpp on the same weights: the bundle's own 8-bit blocks in a GGUF file, and the published file of the base model."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

import numpy as np

from pixel_perception.bundle import Bundle
from pixel_perception.errors import PerceptionError

INSTALL = ("llama.cpp is not installed: CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python llama-cpp-python "
           "builds it for this processor")  # fmt: skip
_PARTS = {"attn_q": "q", "attn_k": "k", "attn_v": "v", "attn_output": "o", "ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down"}
_NORMS = {"attn_norm": "attention_norm", "ffn_norm": "mlp_norm"}


def installed() -> bool:
    """Whether the Python package of llama.cpp can be imported."""
    import importlib.util

    return importlib.util.find_spec("llama_cpp") is not None


class LlamaCpp:
    """A GGUF file on llama.cpp, with flash attention, reading up to `most` tokens."""

    def __init__(self, path: Path, threads: int, most: int = 512) -> None:
        """Raises PerceptionError INTERNAL where llama.cpp does not take the file."""
        import llama_cpp

        self._lib = llama_cpp
        _quiet(llama_cpp)
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise PerceptionError("INTERNAL", f"{path}: llama.cpp {llama_cpp.__version__} does not load it.")
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = most
        parameters.n_threads = parameters.n_threads_batch = threads
        if hasattr(parameters, "flash_attn_type"):
            parameters.flash_attn_type = 1
        else:
            parameters.flash_attn = True
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def forget(self) -> None:
        """Start anew."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)

    def read(self, tokens: list[int]) -> np.ndarray:
        """Read tokens after what was read before; logits (vocabulary,) of what follows, valid until the next call."""
        ids = (self._lib.llama_token * len(tokens))(*tokens)
        if self._lib.llama_decode(self._context, self._lib.llama_batch_get_one(ids, len(tokens))):
            raise PerceptionError("INTERNAL", "llama.cpp could not decode.")
        return np.ctypeslib.as_array(self._lib.llama_get_logits_ith(self._context, -1), (self._vocabulary,))

    def close(self) -> None:
        """Free model and memory."""
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)


_callback = None


def _quiet(lib) -> None:
    global _callback
    if _callback is None:
        _callback = lib.llama_log_callback(lambda level, text, data: None)  # kept: C holds only its address
        lib.llama_log_set(_callback, ctypes.c_void_p(0))
        lib.llama_backend_init()


def description() -> str:
    """Version and what it was built for."""
    import llama_cpp

    flags = [part.split("=")[0].strip() for part in llama_cpp.llama_print_system_info().decode().split("|") if "= 1" in part]
    return f"llama-cpp-python {llama_cpp.__version__}: {' '.join(flags)}"


def write_gguf(bundle: Bundle, base: Path, path: Path) -> None:
    """Write the bundle's language model (LoRA merged) as GGUF with Q8_0 tensors: the same 8-bit numbers in blocks of 32, scales
    rounded to fp16. `base` is the GGUF file of the base model, whose metadata is kept."""
    import onnx
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
    from onnx import numpy_helper

    held = {t.name: numpy_helper.to_array(t) for t in onnx.load(bundle.graph("language_model")).graph.initializer}
    reader, writer = GGUFReader(base), GGUFWriter(path, "llama")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type", "general.quantization_version"):
            writer.add_key_value(name, fields[name], field.types[0], field.types[-1] if len(field.types) > 1 else None)
    writer.add_file_type(7)
    writer.add_quantization_version(2)
    heads = {"attn_q": fields["llama.attention.head_count"], "attn_k": fields["llama.attention.head_count_kv"]}
    for tensor in reader.tensors:
        name = tensor.name.removesuffix(".weight")
        _, layer, part = name.split(".", 2) if name.startswith("blk.") else ("", "", name)
        if part == "output_norm" or part in _NORMS:
            writer.add_tensor(tensor.name, held["final_norm" if not layer else f"layers.{layer}.{_NORMS[part]}"])
            continue
        blocks = _blocks(held, layer, part, fields)
        if part in heads:  # llama.cpp keeps the two halves of a rotary pair side by side
            blocks = np.ascontiguousarray(blocks.reshape(heads[part], 2, -1, *blocks.shape[1:]).swapaxes(1, 2)).reshape(blocks.shape)
        writer.add_tensor(tensor.name, blocks.reshape(len(blocks), -1), raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _blocks(held: dict[str, np.ndarray], layer: str, part: str, fields: dict) -> np.ndarray:
    """One weight as Q8_0 blocks (outputs, inputs / 32, 34) uint8: an fp16 scale and 32 signed bytes each."""
    name, rows = "logits", slice(None)
    if layer:
        ours = _PARTS[part]
        size = fields["llama.rope.dimension_count"]
        q, kv = size * fields["llama.attention.head_count"], size * fields["llama.attention.head_count_kv"]
        wide = fields["llama.feed_forward_length"]
        joined = {"q": ("qkv", 0, q), "k": ("qkv", q, q + kv), "v": ("qkv", q + kv, q + 2 * kv),
                  "gate": ("gate_up", 0, wide), "up": ("gate_up", wide, 2 * wide)}  # fmt: skip
        name, *bounds = joined.get(ours, (ours, None, None))
        name, rows = f"layers.{layer}.{name}", slice(*bounds)
    values, scales = held[f"{name}.weight"][rows], held[f"{name}.scales"][rows]
    scales = scales.reshape(values.shape[:2]).astype(np.float16)
    scales = np.repeat(scales, values.shape[-1] // 32, 1)[..., None].view(np.uint8)
    values = values.reshape(len(values), -1, 32)
    return np.concatenate((scales, (values.astype(np.int16) - 128).astype(np.int8).view(np.uint8)), -1)


def decode_and_prefill(model: LlamaCpp, tokens: list[int], steps: list[int]) -> tuple[float, float]:
    """Seconds to read `tokens`, and median seconds of one token of `steps` after them."""
    model.forget()
    begun = time.perf_counter()
    model.read(tokens)
    prefill, each = time.perf_counter() - begun, []
    for token in steps:
        begun = time.perf_counter()
        model.read([token])
        each.append(time.perf_counter() - begun)
    return prefill, float(np.median(each))

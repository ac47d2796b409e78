"""The same networks in torch, eager or compiled: what the torch rows compare with, on the device that the backend uses."""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import DynamicCache, LlamaConfig, LlamaModel, StaticCache

from pixel_perception.benchmark.roofline import Machine, best
from pixel_perception.errors import PerceptionError
from pixel_perception.export.base_weights import DecoderShape
from pixel_perception.export.llama_folder import NAMES
from pixel_perception.models.folder import building

COPIED = 1 << 30
"""Bytes copied to measure a GPU's bandwidth."""
SIDE = 8192
"""Of the square matrices that a GPU's peak arithmetic is measured with."""
SPARE = 3 << 30
"""Bytes of memory that are left to everybody else."""


@dataclass(frozen=True)
class Device:
    """Where torch runs."""

    name: str
    """cpu or cuda."""
    dtype: torch.dtype
    """Of language."""

    @staticmethod
    def of(on_cpu: bool, threads: int, half: bool) -> Device:
        """The processor (fp32, or bf16 where `half` is wanted) or the first GPU (fp16).

        Raises PerceptionError INVALID_QUERY where torch knows no GPU.
        """
        if on_cpu:
            torch.set_num_threads(threads)
            return Device("cpu", torch.bfloat16 if half else torch.float32)
        if not torch.cuda.is_available():
            raise PerceptionError("INVALID_QUERY", f"torch {torch.__version__} sees no GPU; expected one built for CUDA.")
        return Device("cuda", torch.float16)

    def wait(self) -> None:
        """Until all that was begun is done."""
        if self.name == "cuda":
            torch.cuda.synchronize()

    @property
    def free(self) -> int:
        """Bytes of memory that can be had."""
        return torch.cuda.mem_get_info()[0] if self.name == "cuda" else psutil.virtual_memory().available

    def expect_room(self, size: int, what: str) -> None:
        """Raises PerceptionError OUT_OF_MEMORY where `size` bytes are not to be had."""
        if size + SPARE > self.free:
            raise PerceptionError("OUT_OF_MEMORY", f"{what} needs {(size + SPARE) / 1e9:.1f} GB of memory on {self.name}, "
                                                   f"{self.free / 1e9:.1f} GB are free.")

    def expect_compiler(self) -> None:
        """Raises PerceptionError INVALID_QUERY where `torch.compile` has nothing to compile with."""
        compiler = os.environ.get("CXX", "g++")
        if self.name == "cpu" and shutil.which(compiler) is None:
            raise PerceptionError("INVALID_QUERY", f"torch.compile: expected a C++ compiler, {compiler} or another in $CXX, found none.")
        if self.name == "cuda" and importlib.util.find_spec("triton") is None:
            raise PerceptionError("INVALID_QUERY", "torch.compile: expected the Python package triton, found none.")

    def compile(self, function):
        """`function` compiled when it first runs. On a GPU its launches are recorded as a CUDA graph."""
        return torch.compile(function, dynamic=False, mode="reduce-overhead" if self.name == "cuda" else None)

    def describe(self, compiled: bool, dtype: torch.dtype) -> str:
        """For a row's note."""
        where = torch.cuda.get_device_name() if self.name == "cuda" else "the processor"
        return f"torch {torch.__version__} {'compiled' if compiled else 'eager'} in {_name(dtype)} on {where}"


def measure() -> Machine:
    """What the first GPU can do: bytes read and written by a copy, and fp16 products. Raises PerceptionError INVALID_QUERY where torch
    sees none."""
    device = Device.of(False, 0, True)
    source = torch.zeros(COPIED, dtype=torch.uint8, device="cuda")
    target, square = torch.empty_like(source), torch.ones(SIDE, SIDE, dtype=torch.half, device="cuda")

    def timed(work) -> float:
        def whole() -> None:
            work()
            device.wait()

        return best(whole, 10)

    half = 2 * SIDE**3 / timed(lambda: square @ square)
    return Machine(2 * COPIED / timed(lambda: target.copy_(source)), half, half)


@dataclass(frozen=True)
class Llama:
    """A language model with its output layer."""

    model: LlamaModel
    head: nn.Linear
    device: Device

    @staticmethod
    def of(shape: DecoderShape, weights: Mapping[str, np.ndarray], device: Device) -> Llama:
        """From weights as in `base_weights.BaseLanguage`, which are asked for one by one.

        Raises PerceptionError OUT_OF_MEMORY, before anything is allocated.
        """
        config = LlamaConfig(
            vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate, num_hidden_layers=shape.layers,
            num_attention_heads=1, head_dim=shape.head_dim, rms_norm_eps=shape.rms_epsilon, max_position_embeddings=shape.positions,
            rope_parameters={"rope_type": "default", "rope_theta": shape.rope_base}, pad_token_id=None,
        )  # fmt: skip
        # Set after, because it is refused before where the width is not a multiple of it, which nothing needs.
        config.num_attention_heads, config.num_key_value_heads = shape.heads, shape.kv_heads
        with torch.device("meta"):
            size = sum(p.numel() for p in LlamaModel(config).parameters()) + shape.vocabulary * shape.hidden
        device.expect_room(size * device.dtype.itemsize, f"the language model in torch's {_name(device.dtype)}")
        with building(device.dtype), torch.device(device.name):
            model, head = LlamaModel(config), nn.Linear(shape.hidden, shape.vocabulary, bias=False)
        parts = {"embeddings": model.embed_tokens, "final_norm": model.norm, "output": head}
        for i, layer in enumerate(model.layers):
            parts |= {f"layers.{i}.{name}": layer.get_submodule(theirs) for name, theirs in NAMES.items()}
        with torch.no_grad():
            for name, part in tqdm(parts.items(), desc="torch weights", unit="matrix", disable=None, leave=False):
                part.weight.copy_(torch.tensor(weights[name]))
        return Llama(model.eval(), head, device)


class Reader:
    """Reads a prompt and then token by token, keys and values kept: eager with a cache that grows, compiled with one of fixed size,
    because every other shape would be compiled again."""

    def __init__(self, llama: Llama, compiled: bool, most: int) -> None:
        """`most`: tokens that it can read. Raises PerceptionError INVALID_QUERY where there is no compiler."""
        self._llama, self._device, self._compiled = llama, llama.device, compiled
        self._next, self.description = self._read, self._device.describe(compiled, self._device.dtype)
        if compiled:
            self._device.expect_compiler()
            self._cache = StaticCache(config=llama.model.config, max_cache_len=most)
            self._next = self._device.compile(self._read)

    @torch.inference_mode()
    def decode_and_prefill(self, tokens: list[int], steps: list[int]) -> tuple[float, float, np.ndarray]:
        """Seconds to read `tokens`, median seconds of one token of `steps` after them, and the logits (vocabulary,) after `tokens`."""
        if self._compiled:
            self._cache.reset()
            cache = self._cache
        else:
            cache = DynamicCache(config=self._llama.model.config)
        prefill, logits = self._timed(self._read, tokens, 0, cache)
        each = [self._timed(self._next, [token], len(tokens) + i, cache)[0] for i, token in enumerate(steps)]
        return prefill, float(np.median(each)), logits

    def _timed(self, read, tokens: list[int], before: int, cache) -> tuple[float, np.ndarray]:
        self._device.wait()
        begun = time.perf_counter()
        ids = torch.tensor([tokens], device=self._device.name)
        logits = read(ids, torch.arange(before, before + len(tokens), device=self._device.name)[None], cache).float().cpu().numpy()
        return time.perf_counter() - begun, logits

    def _read(self, ids: Tensor, positions: Tensor, cache) -> Tensor:
        states = self._llama.model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True).last_hidden_state
        return self._llama.head(states[0, -1])


class Runner:
    """A module from arrays by name to mask logits (targets, h, w). In fp32; on a GPU its products are fp16 (autocast)."""

    def __init__(self, module: nn.Module, device: Device, compiled: bool) -> None:
        """Raises PerceptionError INVALID_QUERY where there is no compiler."""
        self._module, self._device = module.eval().to(device.name), device
        if compiled:
            device.expect_compiler()
        self._run = device.compile(self._call) if compiled else self._call
        self.description = device.describe(compiled, torch.float16 if device.name == "cuda" else torch.float32)

    @torch.inference_mode()
    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        return self._run({name: torch.from_numpy(value).to(self._device.name) for name, value in inputs.items()}).float().cpu().numpy()

    def _call(self, inputs: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cuda", torch.float16, enabled=self._device.name == "cuda"):
            return self._module(**inputs)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class CompactPixels(nn.Module):
    """The compact model's standing instruction: image (1, H, W, 3) uint8 and queries (1, T, 2, 128) to mask logits (T, h, w)."""

    def __init__(self, model) -> None:
        super().__init__()
        self.encoder, self.decoder = model.image_encoder, model.pixel_decoder

    def forward(self, image: Tensor, queries: Tensor) -> Tensor:
        return self.decoder(self.encoder(image), queries).mask[0]

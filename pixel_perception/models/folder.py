"""A model on disk for training and evaluation: configuration, weights in our one state-dict layout, tokenizer.

`model.json` holds the configuration, the type of the weights and what they were made of; the weights are `model*.safetensors`,
sharded with an index where they are large; the tokenizer's files lie beside them.
"""

import json
import shutil
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from transformers import LlamaConfig, LlamaModel
from transformers.initialization import no_init_weights

from pixel_perception.models.compact import Compact
from pixel_perception.models.configurations import from_dict, to_dict
from pixel_perception.models.language import Language
from pixel_perception.models.perception_model import PerceptionModel
from pixel_perception.models.tensor_files import CheckpointError, Folder, Row, check
from pixel_perception.models.tokenizer_files import FILES
from pixel_perception.writing import replacing

DESCRIPTION = "model.json"


def save(model: PerceptionModel, folder: str | Path, tokenizer: str | Path | None = None,
         sources: Sequence[dict[str, Any]] = (), shard: str = "5GB") -> Path:
    """Write a model folder in one step: it is there complete, or what was there before still is. Returns the folder.

    `tokenizer` is a folder whose tokenizer files are copied; without it those that the folder already has are kept. `sources`
    are recorded as they are. Raises CheckpointError when the folder holds anything but a model, or the model has other
    tensors than its configuration says (adapters that are not merged), and WritingError.
    """
    folder = expect_free(folder)
    base = model.language.base.config.to_dict() if isinstance(model, Compact) and model.language is not None else None
    with torch.device("meta"):
        expected = _build(model.config, base).state_dict().keys()
    state = model.state_dict()
    if odd := sorted(state.keys() ^ expected):
        raise CheckpointError(f"{folder}: expected the tensors of its configuration, found {len(odd)} more or less, {odd[0]} the first; "
                              "adapters must be merged before")  # fmt: skip
    described = {"format": 1, "configuration": to_dict(model.config), "dtype": str(next(model.parameters()).dtype).split(".")[1]}
    described |= ({"base": base} if base else {}) | {"sources": list(sources)}
    with replacing(folder) as work:
        save_torch_state_dict(state, work, max_shard_size=shard)
        for name in FILES:
            if (path := Path(tokenizer or folder) / name).is_file():
                shutil.copyfile(path, work / name)
        (work / DESCRIPTION).write_text(json.dumps(described, indent=2) + "\n")
    return folder


def expect_free(folder: str | Path) -> Path:
    """The folder, where a model may be written to. Raises CheckpointError when it holds anything but a model."""
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and ((folder / DESCRIPTION).is_file() or not any(folder.iterdir()))):
        raise CheckpointError(f"{folder}: expected no folder, an empty one or one with {DESCRIPTION}, found other files")
    return folder


def load(folder: str | Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> PerceptionModel:
    """The model of a folder in evaluation mode, in its own or another floating-point type.

    Raises CheckpointError for a folder without a model or whose tensors do not fit (each is named), and ConfigurationError for a
    configuration that cannot be read.
    """
    folder = Path(folder)
    described = describe(folder)
    config = from_dict(described["configuration"], str(folder / DESCRIPTION))
    tensors = Folder(folder)
    shapes = tensors.shapes()
    with building(dtype or getattr(torch, described["dtype"])), torch.device(device):
        model = _build(config, described.get("base"))
    ours = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    check([Row(name, name, shapes.get(name), ours.get(name), _status(shapes.get(name), ours.get(name))) for name in shapes | ours])
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(tensors[name])  # a state dict shares its storage with the model
    return model.eval()


def describe(folder: str | Path) -> dict[str, Any]:
    """What `model.json` says. Raises CheckpointError when it is not there or not ours."""
    path = Path(folder) / DESCRIPTION
    if not path.is_file():
        raise CheckpointError(f"{folder}: expected a model folder with {DESCRIPTION}, found none")
    try:
        described = json.loads(path.read_text())
        complete = described["format"] == 1 and "configuration" in described and isinstance(getattr(torch, described["dtype"]), torch.dtype)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise CheckpointError(f"{path}: expected format 1 with configuration and dtype, found something else")
    return described


@contextmanager
def building(dtype: torch.dtype, initial: bool = False):
    """Networks built inside have parameters of a type, and `initial` values only where loading does not overwrite them all."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # a 13B network must not exist twice, once in float32
    try:
        with nullcontext() if initial else no_init_weights():  # drawing billions of numbers takes minutes
            yield
    finally:
        torch.set_default_dtype(before)


def _build(config, base: dict[str, Any] | None) -> PerceptionModel:
    model = PerceptionModel.of(config)
    if base is not None:
        model.language = Language(LlamaModel(LlamaConfig(**base)), config)
    return model


def _status(theirs: tuple[int, ...] | None, ours: tuple[int, ...] | None) -> str:
    if theirs is None or ours is None:
        return "missing" if theirs is None else "extra"
    return "load" if theirs == ours else "shape"

"""The papers' networks at both ends of a run: out of a model's folder, and into one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pixel_perception.models import folder
from pixel_perception.models.configurations import VARYING, Config, configuration, from_dict, to_dict
from pixel_perception.models.perception_model import PerceptionModel
from pixel_perception.training.config import ConfigError, TrainConfig, flat

SMALL = 50_000_000
"""Parameters up to which a network may begin with random weights: larger ones were forgotten to be given theirs."""


def begin(config: TrainConfig, name: str) -> PerceptionModel:
    """The network of a configuration, with the weights in `start`, or with random ones that follow from the seed.

    Raises ConfigError where `start` holds another configuration or is missing, ConfigurationError for an unknown name,
    CheckpointError for a folder that holds no model.
    """
    wanted = configuration(name)
    if config.start is None:
        torch.manual_seed(config.seed)
        with torch.device("meta"):
            size = sum(p.numel() for p in PerceptionModel.of(wanted).parameters())
        if size > SMALL:
            raise ConfigError(f"start: expected the folder of a model to begin with (--set start=FOLDER), as {name} has "
                              f"{size / 1e6:.0f} million parameters, found none")  # fmt: skip
        torch.manual_seed(config.seed)
        return PerceptionModel.of(wanted)
    where = Path(config.start)
    found = from_dict(folder.describe(where)["configuration"], str(where))
    theirs, ours = flat(to_dict(found)), flat(to_dict(wanted))
    for key in dict.fromkeys([*ours, *theirs]):
        if theirs.get(key) != ours.get(key) and not set(key.split(".")) & set(VARYING):
            raise ConfigError(f"start: {where}: expected the weights of {name}, with {key} {ours.get(key)}, found {theirs.get(key)}")
    return folder.load(where, torch.float32 if config.memory.precision == "fp32" else None)


def tokenizer(config: TrainConfig) -> Path:
    """The folder of the tokenizer. Raises ConfigError where there is none."""
    found = config.tokenizer or config.start
    if found is None:
        raise ConfigError("tokenizer: expected the folder of a tokenizer (--set tokenizer=FOLDER), found none")
    return Path(found)


def finish(config: TrainConfig, network: Config, weights: Mapping[str, Tensor], path: Path) -> None:
    """The folder of a model: `start` (in its own precision) with `weights` put into it, low-rank updates added to what they update."""
    model = folder.load(config.start) if config.start else PerceptionModel.of(network)
    model.config = network
    own, lora = model.state_dict(), config.lora
    with torch.no_grad():  # a state dict shares its storage with the model
        for name, tensor in weights.items():
            if ".lora_" not in name or name in own:
                own[name.replace(".base_layer.", ".")].copy_(tensor)
        for name, down in weights.items():
            if lora is not None and name.endswith(".lora_A.default.weight"):
                stem = name.removesuffix(".lora_A.default.weight")
                base = own[f"{stem}.weight"]
                base.copy_(base.float() + lora.alpha / lora.rank * (weights[f"{stem}.lora_B.default.weight"] @ down))
    folder.save(model, path, tokenizer(config), [{"training": config.to_dict()}])

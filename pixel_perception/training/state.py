"""The state of a run on disk: whole at every moment, the same for any number of processes, safetensors and JSON only.

RUN/state-00000120/ holds weights.safetensors, moments.safetensors (AdamW's, by parameter name) and state.json after 120 steps. It
is written under another name and then renamed; only then the state before it is deleted. Random numbers are no part of it: every
step draws them from the seed, its number and the process.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pixel_perception.training.processes import Processes, like, whole
from pixel_perception.writing import WritingError, replacing


class StateError(ValueError):
    """A state that cannot be written, or is not of this run: one sentence."""


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    samples: int = 0
    minutes: float = 0.0


class RunState:
    """Saves and restores network, optimiser, progress and data in the folder of a run.

    `borrowed` are beginnings of names; frozen parameters with such a name come from elsewhere and are not saved.
    """

    def __init__(self, folder: Path, network: nn.Module, optimiser: torch.optim.Optimizer, processes: Processes, borrowed: tuple[str, ...]):
        self.folder, self.network, self.optimiser, self.processes = folder, network, optimiser, processes
        frozen = {n for n, p in network.named_parameters() if not p.requires_grad and n.startswith(borrowed)} if borrowed else set()
        self.names = [name for name in network.state_dict() if name not in frozen]

    def save(self, progress: Progress, data: Mapping[str, Any]) -> None:
        """Every process must call it; the first writes. Raises StateError when that fails; the state before is still whole then."""
        weights, moments = self.weights(), self._moments()
        if self.processes.main:
            facts = {"step": progress.step, "samples": progress.samples, "minutes": progress.minutes, "data": dict(data)}
            write(self.folder, progress.step, weights, moments, facts)
        self.processes.wait()

    def weights(self) -> dict[str, Tensor]:
        """What is saved of the network, whole and on the CPU; empty in all processes but the first. Every process must ask."""
        own = self.network.state_dict()
        return self._whole({name: own[name] for name in self.names})

    def restore(self) -> tuple[Progress, dict[str, Any]] | None:
        """Load the newest state: progress, and what `data` was. None when there is no state. Raises StateError."""
        found = newest(self.folder)
        if found is None:
            return None
        facts = json.loads((found / "state.json").read_text())
        weights, moments = (read_tensors(found / f"{name}.safetensors") for name in ("weights", "moments"))
        own = self.network.state_dict()
        complain(found / "weights.safetensors", shapes(weights), shapes({name: own[name] for name in self.names}))
        with torch.no_grad():
            for name, tensor in weights.items():
                own[name].copy_(like(tensor, own[name]))  # a state dict shares its storage with the network
        parameters = dict(self.network.named_parameters())
        for key, tensor in moments.items():
            name, _, kind = key.rpartition(":")
            parameter = parameters[name]
            placed = like(tensor, parameter) if tensor.shape == parameter.shape else tensor  # the count of steps stays as it is
            self.optimiser.state[parameter][kind] = placed
        return Progress(facts["step"], facts["samples"], facts["minutes"]), facts["data"]

    def _moments(self) -> dict[str, Tensor]:
        names = {id(parameter): name for name, parameter in self.network.named_parameters()}
        return self._whole({
            f"{names[id(parameter)]}:{kind}": value
            for group in self.optimiser.param_groups for parameter in group["params"]
            for kind, value in self.optimiser.state.get(parameter, {}).items()
        })  # fmt: skip

    def _whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # One after the other, and kept by one process only: the others just take part.
        gathered = ((name, whole(tensor)) for name, tensor in tensors.items())
        return {name: tensor for name, tensor in gathered if self.processes.main}


def write(folder: Path, step: int, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """One state, at once or not at all; states of other steps, and what a killed process left, are deleted. Raises StateError."""
    final = folder / f"state-{step:08d}"
    for left in folder.glob(".state-*"):
        shutil.rmtree(left, ignore_errors=True)
    try:
        with replacing(final) as work:
            save_file(dict(weights), work / "weights.safetensors")
            save_file(dict(moments), work / "moments.safetensors")
            (work / "state.json").write_text(json.dumps(facts))
    except WritingError as error:
        before = newest(folder)
        kept = f"the state in {before} is still whole" if before else "nothing is saved yet"
        raise StateError(f"{final}: cannot be written ({error.reason}); {kept}") from None
    for old in folder.glob("state-*"):
        if old != final:
            shutil.rmtree(old, ignore_errors=True)


def newest(folder: Path) -> Path | None:
    """The folder of the last state of a run, None without any."""
    return max((path for path in folder.glob("state-*") if path.is_dir()), default=None)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file. Raises StateError for a damaged one."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise StateError(f"{path}: cannot be read ({error})") from None


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Every tensor's shape."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def complain(path: Path, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raises StateError where tensors by name and shape are not those of the network."""
    for name, shape in wanted.items():
        if name not in found:
            raise StateError(f"{path}: expected the tensor {name} {list(shape)}, found none: the weights of another network")
        if found[name] != shape:
            raise StateError(f"{path}: {name}: expected {list(shape)} as the network has, found {list(found[name])}: another size")
    if extra := sorted(found.keys() - wanted.keys()):
        raise StateError(f"{path}: {extra[0]}: expected no such tensor in this network, found one: the weights of another network")

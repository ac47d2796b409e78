"""What a network is taught, in a form that one loop can teach: losses of a batch, and pictures of what it predicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Picture:
    """One sample before and after: images (H, W, 3) uint8 of one size, and the words that belong to them."""

    image: np.ndarray
    target: np.ndarray
    prediction: np.ndarray
    asked: str = ""
    wanted: str = ""
    said: str = ""


class Lesson(nn.Module, ABC):
    """A network with its objective. Calling it computes losses; everything that touches weights goes through that call, because
    a network that is spread over processes is only whole while it is called.
    """

    borrowed: tuple[str, ...] = ()
    """Beginnings of names of parameters that, when frozen, come from elsewhere each time and are not saved with a run."""

    product = "weights.safetensors"
    """What a finished run leaves in its folder."""

    def forward(self, batch: Any, look: bool = False) -> Any:
        """Losses by name, "total" the one to minimise; with `look` a list of `Picture` instead."""
        if look:
            with torch.no_grad():
                return self.look(batch)
        losses = self.losses(batch)
        return losses | {"total": losses["total"] + 0.0 * self._idle()}

    @abstractmethod
    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Losses of a batch by name, "total" among them."""

    @abstractmethod
    def look(self, batch: Any) -> list[Picture]:
        """What the network predicts for the samples of a batch, as pictures."""

    def blocks(self) -> Sequence[nn.Module]:
        """Repeated parts that are called as modules, each in every forward pass: units of sharding and recomputation."""
        return ()

    def methods(self) -> Sequence[tuple[nn.Module, str]]:
        """Modules inside of blocks that are also used by another method than a call, with its name."""
        return ()

    @abstractmethod
    def finish(self, weights: dict[str, Tensor], path: Path) -> None:
        """Write `product`; `weights` are all tensors that were not borrowed."""

    def _idle(self) -> Tensor:
        """Zero, by way of every parameter that learns: a batch without masks leaves the mask decoder out, and processes that
        disagree about which gradients there are would wait for each other for ever."""
        inside = {id(p) for block in self.blocks() for p in block.parameters()}
        return sum((p.sum() for p in self.parameters() if p.requires_grad and id(p) not in inside), torch.zeros(()))

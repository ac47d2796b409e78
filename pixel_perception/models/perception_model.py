"""What the networks of all configurations have in common: they are built from a configuration and know it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from pixel_perception.models.configurations import Config


class PerceptionModel(nn.Module):
    """A network of one of the configurations; `PerceptionModel.of(config)` builds the right one.

    The three kinds differ in what they compute and so in their verbs: `Compact`, `PixelLM`, `PixelLLM`. What they share is that
    one frozen dataclass says all about them, and one state-dict layout with its folders (`pixel_perception.models.folder`).
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config

    @staticmethod
    def of(config: Config) -> PerceptionModel:
        """The network that a configuration describes, with initial weights, on the device of the context (`torch.device`).

        Raises TypeError for an object that is no configuration.
        """
        from pixel_perception.models.compact import Compact
        from pixel_perception.models.config import CompactConfig
        from pixel_perception.models.pixelllm.config import PixelLLMConfig
        from pixel_perception.models.pixelllm.model import PixelLLM
        from pixel_perception.models.pixellm.config import PixelLMConfig
        from pixel_perception.models.pixellm.model import PixelLM

        kinds = {CompactConfig: Compact, PixelLMConfig: PixelLM, PixelLLMConfig: PixelLLM}
        if type(config) not in kinds:
            raise TypeError(f"expected one of {', '.join(kind.__name__ for kind in kinds)}, found {type(config).__name__}")
        return kinds[type(config)](config)

    def millions(self) -> dict[str, float]:
        """Parameters of each part in millions; needs no values, so it also answers on the meta device."""
        return {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in self.named_children()}

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

"""A PixelLLM with every part that is exported in seconds, whose untrained answers differ from picture to picture."""

from dataclasses import replace

import numpy as np
import torch

from pixel_perception.models.perception_model import PerceptionModel
from pixel_perception.models.pixelllm.config import PixelLLMConfig


def shallow() -> PixelLLMConfig:
    """One layer wherever the tiny model has two."""
    config = PixelLLMConfig.tiny("t5", detector=True, vocabulary=128)
    transformer = replace(config.features.transformer, depth=1)
    return replace(
        config, semantic=replace(config.semantic, depth=1), spatial=replace(config.spatial, depth=1, global_blocks=(0,)),
        features=replace(config.features, queries=4, transformer=transformer), language=replace(config.language, layers=1),
        detector=replace(config.detector, width=64, hidden=64),
    )  # fmt: skip


def pixelllm(config: PixelLLMConfig | None = None) -> PerceptionModel:
    """In evaluation mode; every parameter counts, also those that start at 0 or 1."""
    torch.manual_seed(5)
    model = PerceptionModel.of(config or shallow()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += (0.02 if name.startswith("detector") else 0.1) * torch.randn_like(parameter)
        model.language.logits.weight.normal_(0, 1)
        for layer in (model.detector.head.heat, model.detector.head.box):
            layer.weight.normal_(0, 0.2)
    return model


def picture(patch: int = 30) -> np.ndarray:
    """(3 * patch, 4 * patch, 3) uint8; 28 makes it as wide as the network's frame."""
    return np.kron(np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8), np.ones((patch, patch, 1), np.uint8))

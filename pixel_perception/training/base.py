"""Base weights as torch modules: the language model out of its GGUF file, the image backbone out of its package."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from pixel_perception.export.base_weights import efficientnet_file, language_file


def load_language_model(layers: int | None = None):
    """(LlamaModel in bfloat16, its first `layers` layers; tokenizer). The head is tied to the embeddings."""
    path = language_file()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    causal = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.bfloat16,
                                                  quantization_config=GgufConfig(dequantize=True))
    model = causal.model.eval().requires_grad_(False)
    if layers is not None:
        model.layers = model.layers[:layers]
        model.config.num_hidden_layers = layers
    return model, tokenizer


def imagenet_backbone() -> dict[str, torch.Tensor]:
    """State dict of EfficientNet-Lite0 trained on ImageNet."""
    return torch.load(efficientnet_file(), weights_only=True, map_location="cpu")

"""A LLaMA with random weights of a given shape, and its weights under the names that language graphs are made of."""

import numpy as np
import torch
from transformers import LlamaConfig, LlamaModel

from pixel_perception.export.base_weights import DecoderShape
from pixel_perception.export.llama_folder import NAMES


def random_llama(shape: DecoderShape) -> LlamaModel:
    """In evaluation mode; norms are no ones, so that a norm that is left out is seen."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim, rms_norm_eps=shape.rms_epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_base}, max_position_embeddings=shape.positions,
    )  # fmt: skip
    model = LlamaModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.uniform_(0.5, 1.5) if "norm" in name else parameter.normal_(0, 0.12)
    return model


def weights_of(model: LlamaModel) -> dict[str, np.ndarray]:
    """As `language_graph` and `plain_graph` take them."""
    state = {name: t.detach().numpy() for name, t in model.state_dict().items()}
    out = {"embeddings": state["embed_tokens.weight"], "final_norm": state["norm.weight"]}
    for i in range(model.config.num_hidden_layers):
        out |= {f"layers.{i}.{ours}": state[f"layers.{i}.{theirs}.weight"] for ours, theirs in NAMES.items()}
    return out

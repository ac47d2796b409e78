"""The small language model of PixelLLM: six post-norm layers over [prefix ; words] (the code's "git" variant).

The prefix (visual tokens, then context words) attends to itself both ways and never to the written words, so its
keys and values are computed once; the words attend to the prefix and to the words before them.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from pixel_perception.models.pixelllm.memory import Memory


@dataclass(frozen=True)
class TextDecoderConfig:
    """Sizes of the model; the defaults are the released ones (BERT's vocabulary, no LoRA, all trained).

    Attributes:
        width, layers, heads, vocabulary: of the transformer; feed-forward layers are four times as wide.
        positions: longest text.
        dropout: rate in training.
    """

    width: int = 768
    layers: int = 6
    heads: int = 12
    vocabulary: int = 30522
    positions: int = 1024
    dropout: float = 0.1


class Layer(nn.Module):
    """A post-norm transformer layer."""

    def __init__(self, config: TextDecoderConfig):
        super().__init__()
        self.heads, self.rate = config.heads, config.dropout
        self.query, self.key, self.value = (nn.Linear(config.width, config.width) for _ in range(3))
        self.out = nn.Linear(config.width, config.width)
        self.norm1 = nn.LayerNorm(config.width, eps=1e-5)
        self.mlp = nn.Sequential(nn.Linear(config.width, 4 * config.width), nn.GELU(),
                                 nn.Linear(4 * config.width, config.width))
        self.norm2 = nn.LayerNorm(config.width, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, seen, past=None):
        """Advance (B, T, C); ``seen`` (B, 1, T, past + T) marks what may be looked at. Returns x and its K, V."""
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=self.rate if self.training else 0.0)
        x = self.norm1(x + self.dropout(self.out(y.transpose(1, 2).flatten(2))))
        return self.norm2(x + self.dropout(self.mlp(x))), (k, v)


class TextDecoder(nn.Module):
    """The prefix decoder. Tokens are int64, 0 is padding."""

    def __init__(self, config: TextDecoderConfig):
        super().__init__()
        self.config = config
        self.width, self.vocabulary = config.width, config.vocabulary
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.position = nn.Embedding(config.positions, config.width)
        self.norm = nn.LayerNorm(config.width, eps=1e-8)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.logits = nn.Linear(config.width, config.vocabulary)
        self.dropout = nn.Dropout(config.dropout)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    def embed(self, tokens: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Words (B, T) at positions from ``start`` on -> (B, T, C).

        Raises:
            ValueError: when the text is longer than the position table.
        """
        end = start + tokens.shape[1]
        if end > self.config.positions:
            raise ValueError(f"text of {end} tokens is longer than the {self.config.positions} positions")
        place = self.position.weight[start:end]
        return self.dropout(self.norm(self.embedding(tokens) + place))

    def encode(self, visual: torch.Tensor, context: torch.Tensor | None = None) -> Memory:
        """Read the prefix: visual tokens (B, N, C) and context tokens (B, M), zero where padded."""
        valid = torch.ones(visual.shape[:2], dtype=torch.bool, device=visual.device)
        x = visual
        if context is not None:
            x = torch.cat([x, self.embed(context)], dim=1)
            valid = torch.cat([valid, context > 0], dim=1)
        layers = []
        for layer in self.layers:
            x, pair = layer(x, valid[:, None, None])
            layers.append(pair)
        return Memory(layers, valid)

    def forward(self, tokens: torch.Tensor, memory: Memory) -> tuple[torch.Tensor, torch.Tensor]:
        """Teacher-forced pass: tokens (B, T) from the first token on -> logits (B, T, V), states (B, T, C)."""
        return self.step(tokens, memory)[:2]

    def step(self, tokens: torch.Tensor, memory: Memory, past: list | None = None):
        """Extend a decoding by tokens (B, T): logits (B, T, V), states (B, T, C), and the grown ``past``."""
        past = past or memory.layers
        before, length = past[0][0].shape[2], tokens.shape[1]
        prefix = memory.valid.shape[1]
        x = self.embed(tokens, before - prefix)
        causal = torch.ones(length, before - prefix + length, dtype=torch.bool, device=x.device).tril(before - prefix)
        seen = torch.cat([memory.valid[:, None].expand(-1, length, -1), causal.expand(len(x), -1, -1)], -1)[:, None]
        grown = []
        for layer, pair in zip(self.layers, past, strict=True):
            x, pair = layer(x, seen, pair)
            grown.append(pair)
        return self.logits(x), x, grown

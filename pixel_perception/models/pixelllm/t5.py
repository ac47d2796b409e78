"""Flan-T5 as a prefix language model with LoRA (Raffel et al., 2020; PixelLLM section 5.1).

The encoder reads [visual tokens ; embedded context], both ways; the decoder writes the words. The module speaks
the same two verbs as the small text decoder: ``encode`` gives a memory, ``decode`` extends it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from pixel_perception.models.pixelllm.memory import Memory

MASKED = -1e20
"""Added to forbidden scores. Finite on purpose: where *everything* is forbidden (the positions of padding), it
drowns the scores and leaves an even average over all keys, as in the reference. Too large for float16; use bfloat16."""


@dataclass(frozen=True)
class T5Config:
    """Sizes of the model; the defaults are Flan-T5-XL with the paper's LoRA.

    Attributes:
        width, layers, heads, head_width, hidden, vocabulary: of both halves.
        buckets, distance: of the relative position bias.
        dropout: rate in training.
        lora_rank: rank of the updates of the query and value projections; 0 for none. The paper names the
            self-attention, the released code adapts the cross-attention too.
        lora_scale: factor of the product of the two low-rank matrices.
        lora_cross: adapt the cross-attention, as the released code does.
    """

    width: int = 2048
    layers: int = 24
    heads: int = 32
    head_width: int = 64
    hidden: int = 5120
    vocabulary: int = 32128
    buckets: int = 32
    distance: int = 128
    dropout: float = 0.1
    lora_rank: int = 32
    lora_scale: float = 2.0
    lora_cross: bool = True


class RMSNorm(nn.Module):
    """Scale by the root mean square, in float32 or better, without centring or bias."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.to(torch.promote_types(x.dtype, torch.float32))
        return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)).to(x) * self.weight


class LoraLinear(nn.Linear):
    """A bias-free linear layer plus ``scale * up(down(x))``; ``up`` starts at zero, so it starts as before."""

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float):
        super().__init__(inputs, outputs, bias=False)
        self.scale = scale
        self.lora_down = nn.Parameter(torch.randn(rank, inputs) * inputs**-0.5)
        self.lora_up = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.scale * F.linear(F.linear(x, self.lora_down), self.lora_up)


class RelativeBias(nn.Module):
    """T5's learned bias on attention scores: buckets of distances, logarithmic from half of them on."""

    def __init__(self, config: T5Config, both_ways: bool):
        super().__init__()
        self.config, self.both_ways = config, both_ways
        self.table = nn.Embedding(config.buckets, config.heads)

    def forward(self, queries: int, keys: int, start: int = 0) -> torch.Tensor:
        """Bias (1, heads, queries, keys) for queries at positions start, start + 1, ... and keys from 0."""
        device = self.table.weight.device
        offset = torch.arange(keys, device=device) - torch.arange(start, start + queries, device=device)[:, None]
        buckets, bucket = self.config.buckets, torch.zeros_like(offset)
        if self.both_ways:
            buckets //= 2
            bucket = bucket + (offset > 0) * buckets
            distance = offset.abs()
        else:
            distance = (-offset).clamp(min=0)
        exact = buckets // 2
        growth = torch.log(distance.clamp(min=1).float() / exact) / torch.log(
            torch.tensor(self.config.distance / exact, device=device))
        far = (exact + (growth * (buckets - exact)).long()).clamp(max=buckets - 1)
        bucket = bucket + torch.where(distance < exact, distance, far)
        return self.table(bucket).permute(2, 0, 1)[None]


class Attention(nn.Module):
    """T5 attention: no scaling of scores (it lives in the weights), no biases, LoRA on query and value."""

    def __init__(self, config: T5Config, lora: bool):
        super().__init__()
        inner = config.heads * config.head_width
        self.heads, self.dropout = config.heads, config.dropout

        def adapted():
            if lora and config.lora_rank:
                return LoraLinear(config.width, inner, config.lora_rank, config.lora_scale)
            return nn.Linear(config.width, inner, bias=False)

        self.query, self.value = adapted(), adapted()
        self.key = nn.Linear(config.width, inner, bias=False)
        self.out = nn.Linear(inner, config.width, bias=False)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, N, C) -> keys and values (B, heads, N, D)."""
        return self.split(self.key(x)), self.split(self.value(x))

    def forward(self, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        out = F.scaled_dot_product_attention(self.split(self.query(x)), keys, values, attn_mask=bias.to(x),
                                             dropout_p=self.dropout if self.training else 0.0, scale=1.0)
        return self.out(out.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Gated GELU (tanh form), as in T5 1.1."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.gate = nn.Linear(config.width, config.hidden, bias=False)
        self.up = nn.Linear(config.width, config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.width, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.dropout(F.gelu(self.gate(x), approximate="tanh") * self.up(x)))


class Layer(nn.Module):
    """An encoder layer, or with ``cross`` a decoder layer; norms before, residuals around."""

    def __init__(self, config: T5Config, cross: bool):
        super().__init__()
        self.norm1, self.attention = RMSNorm(config.width), Attention(config, lora=True)
        if cross:
            self.norm2, self.cross = RMSNorm(config.width), Attention(config, lora=config.lora_cross)
        self.norm3, self.mlp = RMSNorm(config.width), FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, bias, memory=None, cross_bias=None, past=None):
        """Advance (B, T, C); ``past`` holds earlier keys and values, and the grown pair is returned."""
        y = self.norm1(x)
        keys, values = self.attention.keys_values(y)
        if past is not None:
            keys, values = torch.cat([past[0], keys], 2), torch.cat([past[1], values], 2)
        x = x + self.dropout(self.attention(y, keys, values, bias))
        if memory is not None:
            x = x + self.dropout(self.cross(self.norm2(x), *memory, cross_bias))
        return x + self.dropout(self.mlp(self.norm3(x))), (keys, values)


class T5(nn.Module):
    """The prefix language model. Tokens are int64; 0 is both padding and the first decoder token."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.config = config
        self.width, self.vocabulary = config.width, config.vocabulary
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.encoder = nn.ModuleList(Layer(config, cross=False) for _ in range(config.layers))
        self.encoder_bias = RelativeBias(config, both_ways=True)
        self.encoder_norm = RMSNorm(config.width)
        self.decoder = nn.ModuleList(Layer(config, cross=True) for _ in range(config.layers))
        self.decoder_bias = RelativeBias(config, both_ways=False)
        self.decoder_norm = RMSNorm(config.width)
        self.logits = nn.Linear(config.width, config.vocabulary, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def encode(self, visual: torch.Tensor, context: torch.Tensor | None = None) -> Memory:
        """Read the prefix: visual tokens (B, N, C) and context tokens (B, M), zero where padded."""
        valid = torch.ones(visual.shape[:2], dtype=torch.bool, device=visual.device)
        x = visual
        if context is not None:
            x = torch.cat([x, self.embedding(context)], dim=1)
            valid = torch.cat([valid, context > 0], dim=1)
        x = self.dropout(x)
        pairs = valid[:, None, :, None] & valid[:, None, None]
        bias = self.encoder_bias(x.shape[1], x.shape[1]) + MASKED * ~pairs
        for layer in self.encoder:
            x, _ = layer(x, bias)
        x = self.dropout(self.encoder_norm(x))
        return Memory([layer.cross.keys_values(x) for layer in self.decoder], valid)

    def forward(self, tokens: torch.Tensor, memory: Memory) -> tuple[torch.Tensor, torch.Tensor]:
        """Teacher-forced pass: tokens (B, T) from the first token on -> logits (B, T, V), states (B, T, C).

        States come after the last norm, before dropout and the vocabulary. A position whose next token is
        padding is itself treated as padding, as in the reference.
        """
        real = F.pad(tokens[:, 1:], (0, 1)) > 0
        return self.step(tokens, memory, real=real)[:2]

    def step(self, tokens: torch.Tensor, memory: Memory, past: list | None = None, real: torch.Tensor | None = None):
        """Extend a decoding by tokens (B, T): logits (B, T, V), states (B, T, C), and the grown ``past``.

        What ``real`` (B, T) bool marks as padding sees nothing; by default no token is.
        """
        past = past or [None] * len(self.decoder)
        start = 0 if past[0] is None else past[0][0].shape[2]
        real = (torch.ones_like(tokens, dtype=torch.bool) if real is None else real)[:, None, :, None]
        # Padding follows the text: who sees only what came before sees none.
        length = tokens.shape[1]
        causal = torch.ones(length, start + length, dtype=torch.bool, device=tokens.device).tril(start)
        bias = self.decoder_bias(length, start + length, start) + MASKED * ~(causal & real)
        cross = MASKED * ~(real & memory.valid[:, None, None])
        return self._decode(tokens, memory, bias, cross, past)

    def _decode(self, tokens, memory, bias, cross, past):
        x = self.dropout(self.embedding(tokens))
        grown = []
        for layer, kv, before in zip(self.decoder, memory.layers, past, strict=True):
            x, pair = layer(x, bias, kv, cross, before)
            grown.append(pair)
        states = self.decoder_norm(x)
        return self.logits(self.dropout(states)), states, grown

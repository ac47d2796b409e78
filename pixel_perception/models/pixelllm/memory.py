"""What both language models of PixelLLM look at while they write."""

from dataclasses import dataclass

import torch


@dataclass
class Memory:
    """Keys and values of what was read, in every layer (B, heads, N, D), and which of its N tokens are real."""

    layers: list[tuple[torch.Tensor, torch.Tensor]]
    valid: torch.Tensor

    def repeat(self, times: int) -> "Memory":
        """The same memory for ``times`` hypotheses of each row."""
        return Memory([tuple(t.repeat_interleave(times, 0) for t in kv) for kv in self.layers], self.valid.repeat_interleave(times, 0))

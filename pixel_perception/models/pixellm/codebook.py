"""The segmentation codebook (section 3.1): L x N tokens name a target; their states are fused into one per scale.

The ids are one consecutive run and are built as such. No tokenizer is asked: some put spaces between the tokens or
give them all the same first id, which breaks the trained order without any error.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class CodebookConfig:
    """`first` is the id of the first token; level 0, the deepest features, owns the first N ids."""

    first: int
    levels: int = 2
    tokens: int = 3

    def __post_init__(self):
        if self.levels < 1 or self.tokens < 1:
            raise ValueError(f"a codebook needs levels and tokens, got {self.levels} x {self.tokens}")

    @property
    def length(self) -> int:
        """L x N."""
        return self.levels * self.tokens

    @property
    def ids(self) -> list[int]:
        """The run that stands for one target."""
        return list(range(self.first, self.first + self.length))

    def contains(self, token: int) -> bool:
        """Whether an id belongs to the codebook."""
        return self.first <= token < self.first + self.length

    def find(self, ids: Tensor) -> list[int]:
        """Where complete runs begin in ids (T,); partial or disordered ones are passed over, the rest still count.

        A run at index 0 is passed over too: its first state, the one before it, does not exist.
        """
        ids, run = ids.tolist(), self.ids
        return [i for i in range(1, len(ids) - len(run) + 1) if ids[i : i + len(run)] == run]


class TokenFusion(nn.Module):
    """Fuse the N states of each scale: h^l = sum_n w_n^l h_n^l (the projection phi of section 3.1).

    The release fixes w = 1 / (N L); it is learnable here and starts there, so published weights keep their numbers.
    """

    def __init__(self, config: CodebookConfig):
        super().__init__()
        self.weights = nn.Parameter(torch.full((config.levels, config.tokens), 1 / config.length))

    def forward(self, states: Tensor) -> Tensor:
        """states (T, L * N, dim) in the order of the ids -> (T, L, dim)."""
        states = states.unflatten(1, self.weights.shape)
        return (states * self.weights[..., None]).sum(2)

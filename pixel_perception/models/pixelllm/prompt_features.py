"""The prompt feature extractor: a location prompt and the image features to a few visual tokens (equation 1)."""

from dataclasses import dataclass, field

import torch
from torch import nn

from pixel_perception.models.sam import TwoWayConfig, TwoWayTransformer


@dataclass(frozen=True)
class PromptFeatureConfig:
    """Sizes of the extractor. The paper says depth 2, the released configurations use 6.

    Attributes:
        queries: learned tokens, and so visual tokens given to the language model.
        output: channels of a visual token.
        transformer: its depth, width, heads and feed-forward width.
    """

    queries: int = 32
    output: int = 1024
    transformer: TwoWayConfig = field(default_factory=lambda: TwoWayConfig(depth=6, dim=512))


class PromptFeatures(nn.Module):
    """Learned queries and prompt tokens attend to the image and back; each query has its own way out.

    The released code also maps the image side of the transformer to the output width and throws it away; that
    layer is left out here.
    """

    def __init__(self, config: PromptFeatureConfig, image_channels: int, prompt_channels: int = 256):
        super().__init__()
        width = config.transformer.dim
        self.queries = nn.Parameter(torch.randn(config.queries, width))
        # Prompt tokens, the dense prompt and the position code arrive in SAM's width.
        same = width == prompt_channels
        self.prompt_projection = nn.Identity() if same else nn.Linear(prompt_channels, width)
        self.position_projection = nn.Identity() if same else nn.Linear(prompt_channels, width)
        self.image_projection = nn.Linear(image_channels, width)
        self.transformer = TwoWayTransformer(config.transformer)
        self.heads = nn.Parameter(torch.randn(config.queries, config.output, width) * width**-0.5)
        self.heads_bias = nn.Parameter(torch.zeros(config.queries, config.output))

    def forward(self, image: torch.Tensor, prompts: torch.Tensor, dense: torch.Tensor,
                position: torch.Tensor) -> torch.Tensor:
        """Extract the visual tokens of every prompt.

        Args:
            image: feature map (B, C, H, W).
            prompts: prompt tokens (B, P, K, D).
            dense: the dense prompt (D,), added to every place of the image.
            position: position code of the image (1, D, H, W).

        Returns:
            Visual tokens (B, P, queries, output).
        """
        batch, count = prompts.shape[:2]
        tokens = torch.cat([self.queries.expand(batch, count, -1, -1), self.prompt_projection(prompts)], dim=2)
        keys = self.image_projection(image.flatten(2).transpose(1, 2)) + self.prompt_projection(dense)
        keys = keys[:, None].expand(-1, count, -1, -1).flatten(0, 1)
        position = self.position_projection(position.flatten(2).transpose(1, 2))
        tokens, _ = self.transformer(tokens.flatten(0, 1), keys, position)
        tokens = tokens[:, : len(self.queries)]
        out = torch.einsum("bqc,qoc->bqo", tokens, self.heads) + self.heads_bias
        return out.unflatten(0, (batch, count))

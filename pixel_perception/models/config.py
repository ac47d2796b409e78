"""Configuration of the compact model: one dataclass per part."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ImageConfig:
    """Network frame in pixels and feature widths in channels."""

    width: int = 384
    height: int = 288
    dim: int = 128
    mask_channels: int = 16
    context_layers: int = 2


@dataclass(frozen=True)
class CodebookConfig:
    """PixelLM's segmentation codebook: `levels` (L) scales of `tokens_per_level` (N) tokens each."""

    levels: int = 2
    tokens_per_level: int = 2

    @property
    def size(self) -> int:
        """Tokens of one group, L * N."""
        return self.levels * self.tokens_per_level


@dataclass(frozen=True)
class RegionConfig:
    """PixelLLM's region prompt: learned queries per prompt, samples per side of a prompt, proposals per image."""

    tokens: int = 3
    samples: int = 7
    layers: int = 2
    proposals: int = 12


@dataclass(frozen=True)
class LanguageConfig:
    """The language model's width, its base vocabulary, and LoRA."""

    hidden: int = 576
    vocabulary: int = 49152
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_modules: tuple[str, ...] = ("q_proj", "v_proj", "o_proj", "down_proj")
    start_id: int = 1
    end_id: int = 2
    newline_id: int = 198


@dataclass(frozen=True)
class CompactConfig:
    """The whole compact model."""

    image: ImageConfig = field(default_factory=ImageConfig)
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    region: RegionConfig = field(default_factory=RegionConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)

    @property
    def codebook_ids(self) -> list[int]:
        """Token ids of one group, level-major."""
        return list(range(self.language.vocabulary, self.language.vocabulary + self.codebook.size))

    @property
    def all_id(self) -> int:
        """Id of the token that makes a group mean every instance instead of exactly one."""
        return self.language.vocabulary + self.codebook.size

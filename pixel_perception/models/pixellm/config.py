"""What a PixelLM is made of: one dataclass, with constructors for the published and a tiny size."""

from dataclasses import dataclass, field

from transformers import LlamaConfig

from pixel_perception.models.pixellm.clip_tower import ClipConfig
from pixel_perception.models.pixellm.codebook import CodebookConfig
from pixel_perception.models.pixellm.decoder import PixelDecoderConfig
from pixel_perception.models.sam import TwoWayConfig


@dataclass(frozen=True)
class LanguageConfig:
    """Sizes of the LLaMA language model; `end` is the id that ends an answer, `spread` that of initial weights."""

    vocabulary: int = 32008
    dim: int = 4096
    layers: int = 32
    heads: int = 32
    key_heads: int = 32
    mlp: int = 11008
    eps: float = 1e-6
    context: int = 2048
    end: int = 2
    spread: float = 0.02

    def llama(self) -> LlamaConfig:
        """The same as transformers writes it."""
        return LlamaConfig(
            vocab_size=self.vocabulary, hidden_size=self.dim, num_hidden_layers=self.layers,
            num_attention_heads=self.heads, num_key_value_heads=self.key_heads, intermediate_size=self.mlp,
            rms_norm_eps=self.eps, max_position_embeddings=self.context, pad_token_id=None,
            eos_token_id=self.end, bos_token_id=1, tie_word_embeddings=False, initializer_range=self.spread,
        )


@dataclass(frozen=True)
class LossConfig:
    """Weights of the training objective (section 3.2); `alpha` is that of the map A, 1 switches refinement off.

    The paper gives no number for alpha; 2 is what the release did before it switched refinement off.
    """

    text: float = 1.0
    refined_bce: float = 2.0
    dice: float = 0.5
    alpha: float = 2.0
    smoothing: float = 0.0

    @classmethod
    def released(cls) -> "LossConfig":
        """As the published code trains: without target refinement."""
        return cls(alpha=1.0)


@dataclass(frozen=True)
class PixelLMConfig:
    """A whole PixelLM. `pooled` is the side of the grid of image tokens that the language model reads, `longest` the longest

    row of training in tokens, those of the image counted.
    Raises ValueError when the parts disagree on the number of scales or the codebook lies outside the vocabulary.
    """

    vision: ClipConfig = field(default_factory=ClipConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    codebook: CodebookConfig = field(default_factory=lambda: CodebookConfig(first=32000))
    decoder: PixelDecoderConfig = field(default_factory=PixelDecoderConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    pooled: int = 16
    longest: int = 512

    def __post_init__(self):
        scales = {len(self.vision.levels), self.codebook.levels, self.decoder.levels}
        if len(scales) > 1:
            raise ValueError(
                f"vision has {len(self.vision.levels)} scales, the codebook {self.codebook.levels}, "
                f"the pixel decoder {self.decoder.levels}; they must agree"
            )
        if self.codebook.ids[-1] >= self.language.vocabulary:
            raise ValueError(f"codebook ids end at {self.codebook.ids[-1]}, outside {self.language.vocabulary} words")

    @property
    def dim(self) -> int:
        """Width of the pixel decoder."""
        return self.decoder.transformer.dim

    @classmethod
    def pixellm_7b(cls) -> "PixelLMConfig":
        """PixelLM-7B on LLaVA-Lightning-7B."""
        return cls()

    @classmethod
    def pixellm_13b(cls) -> "PixelLMConfig":
        """PixelLM-Llama2-13B."""
        return cls(language=LanguageConfig(dim=5120, layers=40, heads=40, key_heads=40, mlp=13824, eps=1e-5,
                                           context=4096))

    @classmethod
    def tiny(cls, levels: int = 2, tokens: int = 3, vocabulary: int = 64) -> "PixelLMConfig":
        """Small enough to learn a few scenes on a processor in a minute: 64 px images. The codebook ends the vocabulary."""
        return cls(
            vision=ClipConfig(dim=32, layers=3, heads=2, mlp=64, patch=8, side=64,
                              levels=tuple(range(-1, -1 - levels, -1))),
            language=LanguageConfig(vocabulary=vocabulary, dim=64, layers=2, heads=4, key_heads=4, mlp=96, spread=0.1),
            codebook=CodebookConfig(first=vocabulary - levels * tokens, levels=levels, tokens=tokens),
            decoder=PixelDecoderConfig(levels, upscaled=16, transformer=TwoWayConfig(dim=32, heads=4, mlp=64)),
            pooled=4,
        )

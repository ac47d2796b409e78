"""The configurations of PixelLLM: which parts, and how large."""

from dataclasses import dataclass, field, replace

from pixel_perception.models.pixelllm.eva02 import Eva02Config
from pixel_perception.models.pixelllm.location_head import LocationHeadConfig
from pixel_perception.models.pixelllm.mask_decoder import MaskConfig
from pixel_perception.models.pixelllm.prompt_features import PromptFeatureConfig
from pixel_perception.models.pixelllm.proposals import ProposalConfig
from pixel_perception.models.pixelllm.sam_vit import SamVitConfig
from pixel_perception.models.pixelllm.t5 import T5Config
from pixel_perception.models.pixelllm.text_decoder import TextDecoderConfig
from pixel_perception.models.sam import TwoWayConfig


@dataclass(frozen=True)
class PixelLLMConfig:
    """A whole model. A part that is None is left out.

    Attributes:
        image_size: side of the square, padded input in pixels.
        semantic, spatial: the two backbones, tuned and frozen.
        features: the prompt feature extractor.
        language: T5, or the small text decoder.
        location, masks, detector: places of words, masks of referred objects, boxes of all objects.
        begin, end: ids of the token that starts a text and of the one that ends it; padding is 0.
        words: longest text, with both of them.
        smoothing: label smoothing of the captions (section 5.1).
        location_weight: lambda of equation 4, on pixels.
    """

    image_size: int = 384
    semantic: Eva02Config = field(default_factory=Eva02Config)
    spatial: SamVitConfig = field(default_factory=SamVitConfig)
    features: PromptFeatureConfig = field(default_factory=PromptFeatureConfig)
    language: T5Config | TextDecoderConfig = field(default_factory=T5Config)
    location: LocationHeadConfig | None = field(default_factory=LocationHeadConfig)
    masks: MaskConfig | None = field(default_factory=MaskConfig)
    detector: ProposalConfig | None = field(default_factory=ProposalConfig)
    begin: int = 0
    end: int = 1
    words: int = 128
    smoothing: float = 0.1
    location_weight: float = 0.1

    @classmethod
    def pixelllm_t5xl(cls) -> "PixelLLMConfig":
        """The model of the paper: Flan-T5-XL with LoRA of rank 32; 4 billion parameters."""
        return cls()

    @classmethod
    def pixelllm_small(cls) -> "PixelLLMConfig":
        """The variant with the six-layer text decoder and BERT's vocabulary; 1.2 billion parameters, mostly backbones."""
        return cls(language=TextDecoderConfig(), begin=101, end=102,
                   detector=ProposalConfig(text_proposals=64))

    def as_in_paper(self) -> "PixelLLMConfig":
        """The same model where the paper differs from the released code, which the defaults follow: two layers in the prompt

        feature extractor, LoRA in self-attention only, and a word's place from the state that predicts it (equation 3).
        """
        features = replace(self.features, transformer=replace(self.features.transformer, depth=2))
        location = self.location and replace(self.location, predicting=True)
        language = replace(self.language, lora_cross=False) if isinstance(self.language, T5Config) else self.language
        return replace(self, features=features, location=location, language=language)

    @classmethod
    def tiny(cls, language: str = "t5", detector: bool = False, vocabulary: int = 96) -> "PixelLLMConfig":
        """A model that runs in a test; with T5 it has the sizes at which the reference numbers were made.

        Args:
            language: "t5" or "text_decoder".
            detector: with the proposal branch.
            vocabulary: tokens of the language model.

        Raises:
            ValueError: for another language model.
        """
        if language == "t5":
            model = T5Config(width=48, layers=2, heads=3, head_width=16, hidden=64, vocabulary=vocabulary, lora_rank=4)
        elif language == "text_decoder":
            model = TextDecoderConfig(width=48, layers=2, heads=4, vocabulary=vocabulary, positions=64)
        else:
            raise ValueError(f"language must be 't5' or 'text_decoder', not {language!r}")
        return cls(
            image_size=112,
            semantic=Eva02Config(width=32, depth=2, heads=2, hidden=85),
            spatial=SamVitConfig(width=32, depth=2, heads=2, window=4, global_blocks=(1,), pretrain_grid=7),
            features=PromptFeatureConfig(output=40, transformer=TwoWayConfig(dim=64)),
            language=model,
            location=LocationHeadConfig(hidden=64),
            detector=ProposalConfig(upsampled=32, detections=5) if detector else None,
            words=12,
        )

"""The compact network: both papers' parts around one image encoder and one language model."""

from __future__ import annotations

from pixel_perception.models.codebook import TokenFusion
from pixel_perception.models.config import CompactConfig
from pixel_perception.models.image_encoder import ImageEncoder
from pixel_perception.models.location_head import LocationHead
from pixel_perception.models.perception_model import PerceptionModel
from pixel_perception.models.pixel_decoder import PixelDecoder
from pixel_perception.models.proposals import Proposals
from pixel_perception.models.region_prompt import PromptFeatures


class Compact(PerceptionModel):
    """Image encoder, proposals, prompt feature extractor, token fusion, pixel decoder and location head.

    `language` is attached where language is needed (`pixel_perception.models.language.Language`); the parts here
    train and export without it.
    """

    def __init__(self, config: CompactConfig):
        super().__init__(config)
        self.image_encoder = ImageEncoder(config.image)
        self.proposals = Proposals(config.image, config.region)
        self.prompt_features = PromptFeatures(config.image, config.region, config.language, config.codebook.levels)
        self.token_fusion = TokenFusion(config.language.hidden, config.image.dim, config.codebook)
        self.pixel_decoder = PixelDecoder(config.image)
        self.location_head = LocationHead(config.language.hidden)
        self.language = None

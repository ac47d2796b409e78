"""PixelLLM: an image, a location prompt and a text in any combination, to words, places, boxes and masks.

Pixels are those of the padded square network input, (x, y); "valid" is the part of it that the image fills, in
the top left corner. B counts images and P the prompts of each.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from pixel_perception.models.perception_model import PerceptionModel
from pixel_perception.models.pixelllm import decoding
from pixel_perception.models.pixelllm.config import PixelLLMConfig
from pixel_perception.models.pixelllm.eva02 import Eva02
from pixel_perception.models.pixelllm.location_head import LocationHead, before_end, boxes_at, points_to_pixels
from pixel_perception.models.pixelllm.mask_decoder import MaskAdapter, MaskDecoder
from pixel_perception.models.pixelllm.prompt_features import PromptFeatures
from pixel_perception.models.pixelllm.proposals import Detections, Detector
from pixel_perception.models.pixelllm.resampling import resize_bicubic
from pixel_perception.models.pixelllm.sam_vit import SamVit
from pixel_perception.models.pixelllm.t5 import T5, T5Config
from pixel_perception.models.pixelllm.text_decoder import TextDecoder
from pixel_perception.models.sam import PromptEncoder, PromptEncoderConfig

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@dataclass
class Features:
    """What the backbones saw.

    Attributes:
        semantic, spatial: maps of the two backbones, (B, C, h, w).
        joined: both at the larger grid, concatenated, (B, C1 + C2, h, w).
        valid: (B, 2) as (width, height) of the unpadded image, pixels.
    """

    semantic: torch.Tensor
    spatial: torch.Tensor
    joined: torch.Tensor
    valid: torch.Tensor


@dataclass
class VisualTokens:
    """Visual tokens (B, P, N, C) as extracted, and as projected to the language model's width."""

    extracted: torch.Tensor
    projected: torch.Tensor


@dataclass
class Words:
    """A teacher-forced text: vocabulary logits and states (B, P, T, .), points (B, P, T, 2, 2) in pixels.

    ``fractions`` are the same points as fractions of the valid image, and ``point_logits`` (B, P, T, 2, 2) the
    head's unsupervised extra outputs; both are None, as are the points, in a model without location head.
    """

    logits: torch.Tensor
    states: torch.Tensor
    points: torch.Tensor | None = None
    fractions: torch.Tensor | None = None
    point_logits: torch.Tensor | None = None


class PixelLLM(PerceptionModel):
    """The whole model; its verbs follow the paper's figure 2 from left to right."""

    def __init__(self, config: PixelLLMConfig):
        super().__init__(config)
        for name, values in (("clip", (CLIP_MEAN, CLIP_STD)), ("imagenet", (IMAGENET_MEAN, IMAGENET_STD))):
            scale = 255.0 if name == "clip" else 1.0
            table = torch.tensor(values).reshape(2, 3, 1, 1) * scale
            self.register_buffer(f"{name}_pixels", table, persistent=False)
        self.semantic = Eva02(config.semantic)
        self.spatial = SamVit(config.spatial)
        channels = config.semantic.width + config.spatial.output
        prompt = config.spatial.output
        self.prompt_encoder = PromptEncoder(PromptEncoderConfig(dim=prompt))
        self.prompt_features = PromptFeatures(config.features, channels, prompt)
        self.language = (T5 if isinstance(config.language, T5Config) else TextDecoder)(config.language)
        width = config.language.width
        self.visual_projection = nn.Sequential(nn.Linear(config.features.output, width), nn.LayerNorm(width, eps=1e-5))
        self.location_head = LocationHead(width, config.location) if config.location else None
        self.mask_decoder = self.mask_adapter = self.detector = None
        if config.masks:
            self.mask_decoder = MaskDecoder(config.masks)
            if config.masks.adapter:
                self.mask_adapter = MaskAdapter(config.masks, self._adapter_input, width)
        if config.detector:
            self.detector = Detector(channels, config.detector)

    @property
    def _projected_to_adapter(self) -> bool:
        # In the released code the small decoder owns its projection, so its mask adapter sees the tokens before it.
        return isinstance(self.config.language, T5Config)

    @property
    def _adapter_input(self) -> int:
        return self.config.language.width if self._projected_to_adapter else self.config.features.output

    def normalise(self, images: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (B, 3, H, W) in 0..255 -> the inputs of the two backbones; padding is 0 after normalising."""
        height, width = images.shape[-2:]
        inside = torch.arange(width, device=images.device) < valid[:, :1]
        inside = inside[:, None] & (torch.arange(height, device=images.device) < valid[:, 1:])[..., None]
        inside = inside[:, None].to(images.dtype)
        return tuple((images - mean) / std * inside for mean, std in (self.clip_pixels, self.imagenet_pixels))

    def encode(self, images: torch.Tensor, valid: torch.Tensor | None = None) -> Features:
        """Run both backbones on images (B, 3, H, W) float in 0..255, padded at the right and below.

        Args:
            valid: (B, 2) as (width, height) of the image inside the padding; by default all of it.
        """
        if valid is None:
            valid = torch.tensor(images.shape[:-3:-1], device=images.device).expand(len(images), 2)
        for_semantic, for_spatial = self.normalise(images, valid)
        semantic, spatial = self.semantic(for_semantic), self.spatial(for_spatial)
        grid = max(tuple(semantic.shape[-2:]), tuple(spatial.shape[-2:]))
        joined = torch.cat([resize_bicubic(semantic, grid), resize_bicubic(spatial, grid)], dim=1)
        return Features(semantic, spatial, joined, valid)

    def whole_image(self, features: Features) -> torch.Tensor:
        """The global prompt: the valid image as a box, (B, 1, 4)."""
        valid = features.valid.to(features.joined)
        return torch.cat([torch.zeros_like(valid), valid], dim=-1)[:, None]

    def prompt_tokens(self, boxes: torch.Tensor) -> torch.Tensor:
        """Boxes (B, P, 4) in pixels -> prompt tokens (B, P, 5, D): two corners and three fillers.

        An empty box (no positive coordinate) becomes the point prompt that the extractor was also shaped for:
        the box's four corners as points, and a padding token.
        """
        size = (self.config.image_size,) * 2
        corners = self.prompt_encoder.boxes(boxes, size)
        filler = self.prompt_encoder.no_mask.expand(*boxes.shape[:2], 3, -1)
        x0, y0, x1, y1 = boxes.unbind(-1)
        points = torch.stack([torch.stack(p, -1) for p in ((x0, y0), (x1, y0), (x0, y1), (x1, y1), (x0, y0))], -2)
        labels = points.new_tensor([1, 1, 1, 1, -1]).expand(points.shape[:-1])
        as_points = self.prompt_encoder.points(points, labels, size)
        filled = (boxes.amax(-1) > 0)[..., None, None]
        return torch.where(filled, torch.cat([corners, filler], dim=-2), as_points)

    def extract(self, features: Features, boxes: torch.Tensor) -> VisualTokens:
        """The visual tokens of location prompts: boxes (B, P, 4) in pixels (equation 1)."""
        position = self.prompt_encoder.positions.grid(*features.joined.shape[-2:])
        tokens = self.prompt_features(features.joined, self.prompt_tokens(boxes), self.prompt_encoder.no_mask, position)
        return VisualTokens(tokens, self.visual_projection(tokens))

    def memory(self, visual: VisualTokens, context: torch.Tensor | None = None):
        """What the language model holds of the prefix: visual tokens (B, P, N, C) and context (B, P, M), in B * P rows."""
        return self.language.encode(visual.projected.flatten(0, 1), None if context is None else context.flatten(0, 1))

    def read(self, features: Features, visual: VisualTokens, tokens: torch.Tensor,
             context: torch.Tensor | None = None) -> Words:
        """Teacher-forced pass over known words (equations 2 and 3).

        Args:
            tokens: (B, P, T) int64: begin, words, end, then zeros.
            context: text prompt (B, P, M) int64, zeros where padded, or None.
        """
        logits, states = self.language(tokens.flatten(0, 1), self.memory(visual, context))
        logits, states = (x.unflatten(0, tokens.shape[:2]) for x in (logits, states))
        if self.location_head is None:
            return Words(logits, states)
        # Position t of the points belongs to token t, whichever state they come from.
        placing = F.pad(states[..., :-1, :], (0, 0, 1, 0)) if self.config.location.predicting else states
        fractions, extra = self.location_head(placing)
        return Words(logits, states, points_to_pixels(fractions, features.valid), fractions, extra)

    @torch.no_grad()
    def write(self, visual: VisualTokens, context: torch.Tensor | None = None, beams: int = 1):
        """Caption every prompt, greedily or with beam search.

        Returns:
            Tokens (B, P, words) int64 and scores (B, P): the mean log-probability of a token (greedy), or the
            penalised log-probability of the text (beams > 1).
        """
        config = self.config
        memory = self.memory(visual, context)
        if beams == 1:
            tokens, scores = decoding.greedy(self.language, memory, config.begin, config.end, config.words)
        else:
            tokens, scores = decoding.beam(self.language, memory, config.begin, config.end, config.words, beams)
            tokens, scores = tokens[:, -1], scores[:, -1]
        shape = visual.projected.shape[:2]
        return tokens.unflatten(0, shape), scores.unflatten(0, shape)

    def trace(self, features: Features, visual: VisualTokens, tokens: torch.Tensor,
              context: torch.Tensor | None = None) -> Words:
        """Places of the words of finished texts (B, P, T): what follows the first end token counts as padding."""
        after = (tokens == self.config.end).cumsum(-1) > 1
        return self.read(features, visual, tokens.masked_fill(after, 0), context)

    def box_places(self, tokens: torch.Tensor) -> torch.Tensor:
        """Where in the points of texts (B, P, T) the referred box is: bool, those of the state that predicts the end."""
        marked = before_end(tokens, self.config.end)
        return F.pad(marked[..., :-1], (1, 0)) if self.config.location.predicting else marked

    def boxes(self, words: Words, tokens: torch.Tensor) -> torch.Tensor:
        """The referred box (B, P, 4) in pixels: the points of the state that predicts the end (equation 5)."""
        return boxes_at(words.points, self.box_places(tokens))

    def masks(self, features: Features, boxes: torch.Tensor, visual: VisualTokens | None = None,
              words: Words | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks of boxes (B, P, 4): logits (B, P, h, w) of the padded input at a quarter of SAM's stride, IoUs (B, P).

        Without visual tokens and words the adapter has nothing to say, and this is plain SAM.
        """
        corners = self.prompt_encoder.boxes(boxes, (self.config.image_size,) * 2)
        if self.mask_adapter is not None and words is not None:
            seen = visual.projected if self._projected_to_adapter else visual.extracted
            corners = self.mask_adapter(*(x.flatten(0, 1) for x in (corners, seen, words.states)))
            corners = corners.unflatten(0, boxes.shape[:2])
        position = self.prompt_encoder.positions.grid(*features.spatial.shape[-2:])
        logits, quality = self.mask_decoder(features.spatial, position, corners, self.prompt_encoder.no_mask)
        return logits[:, :, 0], quality[:, :, 0]

    def detect(self, features: Features) -> list[Detections]:
        """All objects of each image. Boxes are bounded by the padded input, as in the reference."""
        return self.detector(features.joined, (self.config.image_size,) * 2)

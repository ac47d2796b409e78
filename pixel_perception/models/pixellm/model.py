"""PixelLM (section 3, figure 2): image and question in, answer and one mask for each codebook run out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaModel

from pixel_perception.models import losses
from pixel_perception.models.perception_model import PerceptionModel
from pixel_perception.models.pixellm.clip_tower import ClipTower
from pixel_perception.models.pixellm.codebook import TokenFusion
from pixel_perception.models.pixellm.config import PixelLMConfig
from pixel_perception.models.pixellm.decoder import PixelDecoder
from pixel_perception.models.pixellm.images import unpad, valid_cells, valid_pixels
from pixel_perception.models.sam import MLP, LayerNorm2d

IMAGE_SLOT = -200
"""The id that stands for the image in a row of text; the image's tokens replace it."""


@dataclass(frozen=True)
class ImageFeatures:
    """All that the network needs of B images; computed once, reused for every question about them.

    `tokens` (B, n, dim of the language model) with `valid` (B, n) for the language model, `maps` (B, L, c, h, w)
    for the pixel decoder, `fitted` the (height, width) in pixels that each image has in its frame.
    """

    tokens: Tensor
    valid: Tensor
    maps: Tensor
    fitted: list[tuple[int, int]]


@dataclass(frozen=True)
class Batch:
    """R rows of text about B images.

    `ids` and `labels` (R, t) with one IMAGE_SLOT in each row, `text_valid` (R, t) bool, `image_of_row` R indices,
    `fitted` and `sources` B sizes (height, width) in pixels in the frame and of the source image, `masks` B targets
    (K_b, H, W) in the order of rows, then of runs in a row; None when there is nothing to learn from.
    """

    images: Tensor
    fitted: list[tuple[int, int]]
    sources: list[tuple[int, int]]
    ids: Tensor
    text_valid: Tensor
    image_of_row: list[int]
    labels: Tensor | None = None
    masks: list[Tensor] | None = None


@dataclass(frozen=True)
class Output:
    """`masks` B logits (K_b, H, W) on the source images, `fused` (T, L, c), `hidden` (R, t - 1 + n, dim).

    `losses` holds "text", "refined_bce", "dice" and their weighted sum "total"; empty without labels.
    """

    masks: list[Tensor]
    fused: Tensor
    hidden: Tensor
    losses: dict[str, Tensor]


class PixelLM(PerceptionModel):
    """The whole network of the paper. Parameters live where `torch.device` and dtype contexts put them."""

    def __init__(self, config: PixelLMConfig):
        super().__init__(config)
        dim, wide, c = config.language.dim, config.vision.dim, config.dim
        self.vision = ClipTower(config.vision)
        self.to_text = MLP(wide, 2 * dim, dim, activation=F.gelu)
        self.to_decoder = MLP(wide, 2 * dim, dim, activation=F.gelu)
        self.neck = nn.Sequential(
            nn.Conv2d(dim, c, 1, bias=False), LayerNorm2d(c), nn.Conv2d(c, c, 3, padding=1, bias=False), LayerNorm2d(c)
        )
        self.language = LlamaModel(config.language.llama())
        self.word_head = nn.Linear(dim, config.language.vocabulary, bias=False)
        self.to_target = MLP(dim, dim, c)
        self.fusion = TokenFusion(config.codebook)
        self.decoder = PixelDecoder(config.decoder)

    def encode(self, images: Tensor, fitted: Sequence[tuple[int, int]]) -> ImageFeatures:
        """Encode frames (B, 3, side, side) from `images.prepare` with their fitted sizes.

        Raises ValueError when the frames have another size than the tower or do not match the sizes.
        """
        side = self.config.vision.side
        if images.shape[1:] != (3, side, side) or len(images) != len(fitted):
            raise ValueError(f"{len(fitted)} frames (3, {side}, {side}) are needed, got {tuple(images.shape)}")
        seen = self.see(images, valid_pixels(fitted, side, images.device))
        return ImageFeatures(*seen, [tuple(x) for x in fitted])

    def see(self, images: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Frames (B, 3, side, side) and which of their pixels are valid (B, side, side) -> `tokens`, `valid` and `maps` of

        `ImageFeatures`: the part of `encode` that is a graph.
        """
        grid, pooled = self.config.vision.grid, self.config.pooled
        levels = self.vision(images, valid_cells(pixels, grid))
        maps = [self.neck(as_map(self.to_decoder(x), grid)) for x in levels]
        coarse = F.interpolate(as_map(levels[0], grid), (pooled, pooled), mode="bilinear", align_corners=False)
        tokens = self.to_text(coarse.flatten(2).transpose(1, 2))
        return tokens, valid_cells(pixels, pooled), torch.stack(maps, 1)

    def splice(self, ids: Tensor, text_valid: Tensor, features: ImageFeatures, image_of_row: Sequence[int]):
        """Rows of ids (R, t) -> embeddings (R, t - 1 + n, dim) and validity (R, t - 1 + n), image in its slot.

        Raises ValueError when a row has no image slot or several.
        """
        embeddings, valid = [], []
        for row, row_valid, image in zip(ids, text_valid, image_of_row, strict=True):
            slots = (row == IMAGE_SLOT).nonzero().flatten().tolist()
            if len(slots) != 1:
                raise ValueError(f"each row of text needs one image slot ({IMAGE_SLOT}), one row has {len(slots)}")
            words = self.language.embed_tokens(row.clamp(min=0))
            embeddings.append(replace_at(words, slots[0], features.tokens[image]))
            valid.append(replace_at(row_valid.bool(), slots[0], features.valid[image]))
        return torch.stack(embeddings), torch.stack(valid)

    def forward(self, batch: Batch) -> Output:
        """Answers given (teacher forcing): masks of every codebook run in the text, and losses if there are labels.

        The state used for a codebook token is the one that predicts it, one position earlier.
        """
        features = self.encode(batch.images, batch.fitted)
        embeddings, valid = self.splice(batch.ids, batch.text_valid, features, batch.image_of_row)
        hidden = self.language(inputs_embeds=embeddings, attention_mask=valid).last_hidden_state
        book, shift = self.config.codebook, features.tokens.shape[1] - 1
        found = [(row, start + shift - 1) for row, ids in enumerate(batch.ids) for start in book.find(ids)]
        fused = self.fuse([hidden[row, start : start + book.length] for row, start in found], hidden)
        image_of_target = [batch.image_of_row[row] for row, _ in found]
        masks = self.masks(fused, features, image_of_target, batch.sources)
        if batch.labels is None:
            return Output(masks, fused, hidden, {})
        questions = [
            torch.tensor([row for row, _ in found if batch.image_of_row[row] == image], device=hidden.device)
            for image in range(len(masks))
        ]
        return Output(masks, fused, hidden, self._losses(batch, hidden, masks, questions, shift + 1))

    def fuse(self, groups: Sequence[Tensor], like: Tensor) -> Tensor:
        """T groups of predicting states (L N, dim of the language model) -> fused targets (T, L, c)."""
        if not groups:
            return like.new_zeros(0, self.config.codebook.levels, self.config.dim)
        return self.fusion(self.to_target(torch.stack(list(groups))))

    def masks(
        self, fused: Tensor, features: ImageFeatures, image_of_target: Sequence[int], sources: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """Fused targets (T, L, c) on the images told -> B mask logits (K_b, H, W) on the source images.

        `sources` are the (height, width) of all B images. Targets keep their order within an image.
        """
        if not len(fused):
            return [fused.new_zeros(0, *source) for source in sources]
        combined = self.decoder(fused, features.maps, image_of_target).combined
        where = torch.as_tensor(image_of_target, device=fused.device)
        return [
            unpad(combined[where == image], fitted, tuple(source))
            for image, (fitted, source) in enumerate(zip(features.fitted, sources, strict=True))
        ]

    def _losses(self, batch: Batch, hidden: Tensor, masks, questions, image_tokens: int) -> dict[str, Tensor]:
        weights = self.config.losses
        ignored = batch.labels.new_full((image_tokens,), losses.IGNORE)
        labels = torch.stack([
            replace_at(row, int((ids == IMAGE_SLOT).nonzero()), ignored)
            for row, ids in zip(batch.labels, batch.ids, strict=True)
        ])
        refined, dice = [], []
        for logits, target, question in zip(masks, batch.masks or [], questions, strict=bool(batch.masks)):
            if logits.shape != target.shape:
                raise ValueError(f"the text names masks {tuple(logits.shape)}, targets are {tuple(target.shape)}")
            refined.append(losses.refined_bce(logits, target, weights.alpha, question))
            dice.append(losses.mask_dice(logits, target))
        parts = {
            "text": losses.next_token_loss(self.word_head(hidden), labels, weights.smoothing),
            "refined_bce": losses.mean_over_masks(refined, hidden),
            "dice": losses.mean_over_masks(dice, hidden),
        }
        return parts | {"total": sum(getattr(weights, name) * value for name, value in parts.items())}


def as_map(tokens: Tensor, side: int) -> Tensor:
    """(B, side^2, c) row-major -> (B, c, side, side)."""
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def replace_at(row: Tensor, index: int, inserted: Tensor) -> Tensor:
    """One element of a row replaced by several."""
    return torch.cat([row[:index], inserted.to(row.dtype), row[index + 1 :]])


def mask_scores(logits: Tensor) -> Tensor:
    """Mean probability over each mask's own pixels (K, H, W) -> (K,); 0 for an empty mask."""
    on = logits > 0
    return (logits.sigmoid() * on).flatten(1).sum(1) / on.flatten(1).sum(1).clamp(min=1)

"""PixelLLM's lessons: one for each stage of its training (section 5.1; papers_spec B.8)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor, nn

from pixel_perception.drawing import draw
from pixel_perception.models.pixelllm import objective, stages
from pixel_perception.models.pixelllm.config import PixelLLMConfig
from pixel_perception.models.pixelllm.model import Features, PixelLLM, VisualTokens
from pixel_perception.models.pixelllm.resampling import resize_bilinear
from pixel_perception.models.pixelllm.t5 import T5
from pixel_perception.models.pixelllm.text import PixelLLMText
from pixel_perception.training import network
from pixel_perception.training.collate_pixelllm import Collate, PixelLLMBatch
from pixel_perception.training.config import ConfigError, TrainConfig
from pixel_perception.training.lesson import Lesson, Picture
from pixel_perception.training.pixellm_lesson import tinted
from pixel_perception.training.tasks.sample import Sample
from pixel_perception.types import Region, WordLocation

DRAWN = 4
"""Most texts that are drawn into one picture."""


class PixelLLMLesson(Lesson):
    """The objective of one stage."""

    product = "model"

    def __init__(self, model: PixelLLM, text: PixelLLMText, config: TrainConfig):
        super().__init__()
        assert config.pixelllm is not None
        self.model, self.text, self.config, self.options = model, text, config, config.pixelllm
        self.borrowed = ("model.",) if config.start else ()
        stages.prepare(model, config.pixelllm.stage)

    def losses(self, batch: PixelLLMBatch) -> dict[str, Tensor]:
        """Those of the stage, the parts as they are and their weighted sum "total"."""
        return objective.forward(self.model, batch.tensors).losses

    def collate(self) -> Collate:
        """What makes batches for it."""
        return Collate(self.options, self.model.config, self.text)

    def blocks(self) -> list[nn.Module]:
        """The blocks of both backbones and the layers of the language model."""
        language = self.model.language
        layers = [*language.encoder, *language.decoder] if isinstance(language, T5) else [*language.layers]
        return [*self.model.semantic.blocks, *self.model.spatial.blocks, *layers]

    def methods(self) -> list[tuple[nn.Module, str]]:
        """The cross-attention of T5, whose keys and values are computed once for a prefix."""
        language = self.model.language
        return [(layer.cross, "keys_values") for layer in language.decoder] if isinstance(language, T5) else []

    def look(self, batch: PixelLLMBatch) -> list[Picture]:
        """What the stage is about: words at their places, boxes, masks, or objects with captions."""
        model, tensors = self.model, batch.tensors
        features = model.encode(tensors.images, tensors.valid)
        if self.options.stage == "dense_captioning":
            return [self._objects(pixels, features, batch, b) for b, pixels in enumerate(batch.images)]
        visual = model.extract(features, tensors.prompts)
        if self.options.stage == "trace":
            return self._narrated(features, visual, batch)
        return self._referred(features, visual, batch)

    def finish(self, weights: dict[str, Tensor], path: Path) -> None:
        """The folder of the model."""
        network.finish(self.config, self.model.config, {name.removeprefix("model."): t for name, t in weights.items()}, path)

    def _narrated(self, features: Features, visual: VisualTokens, batch: PixelLLMBatch) -> list[Picture]:
        tensors, pictures = batch.tensors, []
        written, _ = self.model.write(visual, tensors.context)
        places = self.model.trace(features, visual, written, tensors.context).points
        for b, pixels in enumerate(batch.images):
            wanted, said = tensors.tokens[b, 0].tolist(), written[b, 0].tolist()
            shown = [self._words(ids, points[b, 0].float()) for ids, points in ((wanted, tensors.traces), (said, places))]
            target, prediction = (draw(pixels, words=words, text=text) for words, text in shown)
            asked = self.text.decode(tensors.context[b, 0].tolist())
            pictures.append(Picture(pixels, target, prediction, asked, self.text.decode(wanted), self.text.decode(said)))
        return pictures

    def _words(self, ids: list[int], points: Tensor) -> tuple[list[WordLocation], str]:
        """Tokens with their places, and the text that they are parts of (with a space between all)."""
        config, locations, text = self.model.config, [], ""
        for i, token in enumerate(ids[1:], start=1):
            if token in (config.end, self.text.pad):
                break
            said = self.text.decode([token])
            if points[i].any() and said:
                begin = len(text.encode())
                locations.append(WordLocation(begin, begin + len(said.encode()), tuple(points[i].flatten().tolist())))
            text += f"{said} "
        return locations, text

    def _referred(self, features: Features, visual: VisualTokens, batch: PixelLLMBatch) -> list[Picture]:
        model, tensors, pictures = self.model, batch.tensors, []
        words = model.read(features, visual, tensors.tokens, tensors.context)
        boxes = model.boxes(words, tensors.tokens).float()
        masks = None
        if tensors.masks is not None:
            masks = resize_bilinear(model.masks(features, boxes, visual, words)[0].float(), tuple(tensors.images.shape[-2:])) > 0
        for b, pixels in enumerate(batch.images):
            rows = tensors.real[b].nonzero().flatten().tolist()[:DRAWN]
            names = [self.text.decode(tensors.tokens[b, p].tolist()) for p in rows]
            target, prediction = (
                draw(pixels if found is None else tinted(pixels, found[b][rows]),
                     regions=[Region(upright(places[b, p]), name, 1.0) for p, name in zip(rows, names, strict=True)])
                for found, places in ((tensors.masks, tensors.boxes), (masks, boxes))
            )  # fmt: skip
            pictures.append(Picture(pixels, target, prediction, "; ".join(names)))
        return pictures

    def _objects(self, pixels: np.ndarray, features: Features, batch: PixelLLMBatch, b: int) -> Picture:
        model, tensors = self.model, batch.tensors
        rows = tensors.real[b].nonzero().flatten().tolist()[:DRAWN]
        known = [Region(upright(tensors.boxes[b, p]), self.text.decode(tensors.tokens[b, p].tolist()), 1.0) for p in rows]
        one = Features(*(x[b : b + 1] for x in (features.semantic, features.spatial, features.joined, features.valid)))
        best = model.detect(one)[0]
        boxes = best.boxes[:DRAWN].float()
        regions: list[Region] = []
        if len(boxes):
            context = tensors.context[b : b + 1, :1].expand(-1, len(boxes), -1)
            written, _ = model.write(model.extract(one, boxes[None]), context)
            regions = [Region(upright(box), self.text.decode(ids), float(score))
                       for box, ids, score in zip(boxes, written[0].tolist(), best.scores, strict=False)]  # fmt: skip
        said, wanted = ("; ".join(region.caption for region in some) for some in (regions, known))
        return Picture(pixels, draw(pixels, regions=known), draw(pixels, regions=regions), "all objects", wanted, said)


def build(config: TrainConfig) -> PixelLLMLesson:
    """The lesson of a configuration, its network from `start`. Raises ConfigError, CheckpointError, TokenizerError."""
    assert config.pixelllm is not None
    model = network.begin(config, config.pixelllm.model)
    if not isinstance(model.config, PixelLLMConfig):
        raise ConfigError(f"pixelllm.model: expected a PixelLLM, found {config.pixelllm.model!r}")
    return PixelLLMLesson(model, PixelLLMText.open(network.tokenizer(config), model.config), config)


def check(config: TrainConfig, name: str, sample: Sample) -> None:
    """Raises ConfigError where a data set of such samples is not for the stage."""
    assert config.pixelllm is not None
    needed, found = {
        "trace": ("captions of whole images", any(c.box is None for c in sample.captions)),
        "referring": ("expressions with boxes", any(t.box is not None for t in sample.targets)),
        "segmentation": ("expressions with boxes and masks", any(t.box is not None and t.mask is not None for t in sample.targets)),
        "dense_captioning": ("captions of boxes", any(c.box is not None for c in sample.captions)),
    }[config.pixelllm.stage]
    if not found:
        raise ConfigError(f"data.{name}: expected a data set with {needed} for the stage {config.pixelllm.stage}, found none in it")


def upright(box: Tensor) -> tuple[float, float, float, float]:
    """A box with its corners in order: a prediction may have them the other way round."""
    x0, y0, x1, y1 = box.tolist()
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)

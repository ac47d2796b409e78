"""PixelLM's lesson: questions about targets, answered with text and masks (section 3.2; papers_spec A.8)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from pixel_perception.drawing import COLORS, paint
from pixel_perception.models.pixellm.config import PixelLMConfig
from pixel_perception.models.pixellm.generation import generate
from pixel_perception.models.pixellm.model import ImageFeatures, PixelLM
from pixel_perception.models.pixellm.text import SEG, PixelLMText
from pixel_perception.training import network
from pixel_perception.training.collate_pixellm import Collate, Lines, PixelLMBatch
from pixel_perception.training.config import ConfigError, Lora, TrainConfig
from pixel_perception.training.config import PixelLM as Options
from pixel_perception.training.lesson import Lesson, Picture
from pixel_perception.training.tasks.sample import Sample

SPOKEN = 64
"""Most tokens of an answer that is drawn."""


class PixelLMLesson(Lesson):
    """Cross-entropy on answers, refined BCE and DICE on masks."""

    product = "model"

    def __init__(self, model: PixelLM, text: PixelLMText, config: TrainConfig):
        super().__init__()
        assert config.pixellm is not None
        self.model, self.text, self.config = model, text, config
        # What does not learn is where it came from; without a start it is random, and only here.
        self.borrowed = ("model.",) if config.start else ()
        if config.lora:
            adapt(model, config.lora)
        choose(model, config.pixellm)
        model.language.config.use_cache = False  # a cache would be filled twice where blocks are computed again

    def losses(self, batch: PixelLMBatch) -> dict[str, Tensor]:
        """ "text", "refined_bce", "dice" as they are, and their weighted sum "total"."""
        return self.model(batch.tensors).losses

    def collate(self) -> Collate:
        """What makes batches for it."""
        return Collate(self.config.pixellm, self.model.config, self.text)

    def blocks(self) -> list[nn.Module]:
        """The layers of the language model."""
        return list(self.model.language.layers)

    def look(self, batch: PixelLMBatch) -> list[Picture]:
        """For each image its first question that has targets, answered freely."""
        features = self.model.encode(batch.tensors.images, batch.tensors.fitted)
        pictures = []
        for image, pixels in enumerate(batch.images):
            mine = [row for row in batch.rows if row.image == image]
            row = next((row for row in mine if row.targets), mine[0])
            before = sum(earlier.targets for earlier in mine[: mine.index(row)])
            truth = batch.tensors.masks[image][before : before + row.targets]
            pictures.append(self._picture(pixels, image, row, truth, features, batch))
        return pictures

    def finish(self, weights: dict[str, Tensor], path: Path) -> None:
        """The folder of the model, LoRA merged into its base."""
        network.finish(self.config, self.model.config, {name.removeprefix("model."): t for name, t in weights.items()}, path)

    def _picture(self, pixels: np.ndarray, image: int, row: Lines, truth: Tensor, features: ImageFeatures, batch: PixelLMBatch) -> Picture:
        model, asked = self.model, row.rounds[0]
        answer = generate(model, features, self.text.prompt(asked.question), image=image, limit=SPOKEN)
        logits = model.masks(answer.fused, features, [image] * len(answer.starts), batch.tensors.sources)[image]
        target, prediction = tinted(pixels, truth), tinted(pixels, logits > 0)
        return Picture(pixels, target, prediction, asked.question, numbered(asked.answer), numbered(self.text.decode(answer.ids)))


def build(config: TrainConfig) -> PixelLMLesson:
    """The lesson of a configuration, its network from `start`. Raises ConfigError, CheckpointError, TokenizerError."""
    assert config.pixellm is not None
    model = network.begin(config, config.pixellm.model)
    if not isinstance(model.config, PixelLMConfig):
        raise ConfigError(f"pixellm.model: expected a PixelLM, found {config.pixellm.model!r}")
    model.config = replace(model.config, losses=replace(model.config.losses, alpha=config.pixellm.refinement))
    return PixelLMLesson(model, PixelLMText.open(network.tokenizer(config), model.config), config)


def check(config: TrainConfig, name: str, sample: Sample) -> None:
    """Raises ConfigError where a data set of such samples is not for PixelLM."""
    targets = [*sample.targets, *(target for one in sample.rounds for target in one.targets)]
    if not (sample.targets or sample.rounds) or any(target.mask is None for target in targets):
        raise ConfigError(f"data.{name}: expected a data set with questions, or with masks of named things, for PixelLM; found neither")


def adapt(model: PixelLM, lora: Lora) -> None:
    """Put LoRA into the language model, in float32. Raises ConfigError for modules that it does not have."""
    settings = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(lora.modules))
    try:
        inject_adapter_in_model(settings, model.language)
    except ValueError:
        raise ConfigError(f"lora.modules: expected projections of LLaMA such as q_proj, found {', '.join(lora.modules)}") from None
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()


def choose(model: PixelLM, options: Options) -> None:
    """Let LoRA and what `learns` learn, except for what is `frozen`. Raises ConfigError for names that no parameter begins with."""
    names = [name for name, _ in model.named_parameters()]
    for field in ("learns", "frozen"):
        for prefix in getattr(options, field):
            if not any(name.startswith(prefix) for name in names):
                raise ConfigError(f"pixellm.{field}: expected beginnings of parameter names, found {prefix!r}, with which none begins")
    for name, parameter in model.named_parameters():
        learns = name.startswith(options.learns) and not name.startswith(options.frozen or ("\0",))
        parameter.requires_grad_("lora_" in name or (bool(options.learns) and learns))


def tinted(pixels: np.ndarray, masks: Tensor) -> np.ndarray:
    """The image (H, W, 3) with masks (K, H, W) bool painted in, each in its colour."""
    out = pixels.copy()
    for k, mask in enumerate(masks.cpu().numpy()):
        paint(out, mask.astype(bool), (0, 0), COLORS[k % len(COLORS)])
    return out


def numbered(answer: str) -> str:
    """An answer with its targets as [1], [2], ..."""
    pieces = answer.split(SEG)
    return "".join(f"{piece}[{k}]" for k, piece in enumerate(pieces[:-1], start=1)) + pieces[-1]

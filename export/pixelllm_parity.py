"""Do a PixelLLM's bundle and its torch model answer alike? Both find what is named in a picture; the bundle narrates the picture, and
torch reads the very same words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from pixel_perception import masks
from pixel_perception.bundle import Bundle
from pixel_perception.evaluation.networks import PixelLLMPredictor
from pixel_perception.export.exported import MOST_TOKENS
from pixel_perception.export.parity import divergence, summed
from pixel_perception.export.pixellm_parity import Asked
from pixel_perception.models.pixelllm.model import PixelLLM, Words
from pixel_perception.models.pixelllm.text import PixelLLMText
from pixel_perception.models.pixellm.images import unpad
from pixel_perception.runtime.agreement import cosine
from pixel_perception.runtime.language import Answer, Group, Prompt
from pixel_perception.runtime.pixelllm import PixelLLMVision
from pixel_perception.runtime.sequence import LONG_PROMPT, SHORT_PROMPT, SequenceLanguage
from pixel_perception.runtime.session import Backend


class Recorded(SequenceLanguage):
    """Keeps what it chose from: (token, logits) of every choice of one answer."""

    choices: list[tuple[int, np.ndarray]]

    def choose(self, logits: np.ndarray, last: int) -> tuple[int, float]:
        """See `SequenceLanguage.choose`."""
        token, probability = super().choose(logits, last)
        self.choices.append((token, logits.copy()))
        return token, probability


class Reference:
    """A torch model that reads what the bundle wrote about one picture (H, W, 3) uint8 RGB."""

    def __init__(self, predictor: PixelLLMPredictor, image: np.ndarray) -> None:
        self.model, self.text, self.seen = predictor.model, predictor.text, predictor.look(image)
        features = self.seen.features
        self.visual = self.model.extract(features, self.model.whole_image(features))

    def read(self, ids: Sequence[int], prompt: str, most: int) -> tuple[Tensor, Words]:
        """A text's ids (1, 1, T) and what the model makes of them after a prompt of at most so many tokens."""
        tokens, context = torch.tensor([[ids]]), torch.tensor([[self.text.context(prompt, most)]])
        return tokens, self.model.read(self.seen.features, self.visual, tokens, context)

    def found(self, tokens: Tensor, words: Words) -> tuple[np.ndarray, list[np.ndarray]]:
        """The box (4,) of an expression in pixels of the picture, and where there is a mask decoder its mask (H, W) bool."""
        box, (height, width) = self.model.boxes(words, tokens), self.seen.source
        scale = np.array([width / self.seen.fitted[1], height / self.seen.fitted[0]] * 2)
        place = np.clip(box[0, 0].numpy() * scale, 0, [width, height, width, height])
        if self.model.mask_decoder is None:
            return place, []
        logits, _ = self.model.masks(self.seen.features, box, self.visual, words)
        return place, list(unpad(logits[0], self.seen.fitted, self.seen.source).numpy() > 0)


def measure(model: PixelLLM, bundle: Bundle, backend: Backend, samples: Sequence[Asked]) -> dict:
    """Figures of one backend, as `parity.measure_compact` has them: boxes in pixels of the pictures, choices those of narrations."""
    vision, language, templates = PixelLLMVision(bundle, backend), Recorded(bundle, backend), bundle.manifest.templates
    text = PixelLLMText(Tokenizer.from_file(str(bundle.file("tokenizer.json"))), model.config)
    predictor = PixelLLMPredictor(bundle.manifest.name, bundle.digest, model, text)
    lists: dict[str, list[float]] = {key: [] for key in ("cosine", "agree", "kl", "iou", "box")}
    targets, begin = 0, model.config.begin
    for sample in tqdm(samples, desc=f"parity {backend.name}", unit="prompt", disable=None):
        with torch.inference_mode():
            theirs = Reference(predictor, sample.image)
            encoded, language.choices = vision.encode(sample.image), []
            prefix = language.prefix(*vision.visual(encoded))
            list(language.converse(prefix, [Prompt(templates.narrate, None, MOST_TOKENS)], [Answer()]))
            fed = [begin, *(token for token, _ in language.choices)]
            _, words = theirs.read(fed, templates.narrate, SHORT_PROMPT)
            for last, (token, ours), wanted in zip(fed[:-1], language.choices, words.logits[0, 0].numpy(), strict=False):
                lists["agree"].append(float(SequenceLanguage.choose(language, wanted, last)[0] == token))
                lists["kl"].append(divergence(wanted, ours))
            if "REFER" not in bundle.manifest.tasks:
                continue
            name, question = sample.question, templates.segment.replace("{}", sample.question)
            asked = Prompt(question, None, MOST_TOKENS, name, name)
            (states,) = (event.states for _, event in language.converse(prefix, [asked], [Answer()]) if isinstance(event, Group))
            tokens, words = theirs.read(text.tokens(name, model.config.words), question, LONG_PROMPT)
            place, wanted = theirs.found(tokens, words)
        targets += 1
        lists["cosine"] += list(cosine(states, words.states[0, 0].numpy()))
        box = encoded.letterbox.to_source(vision.boxes(encoded, states[None])[0])
        lists["box"].append(float(np.abs(box - place).max()))
        for mask in map(masks.crop, wanted):
            ours = masks.from_logits(vision.decode(encoded, states[None])[0][0], encoded.letterbox)
            if ours or mask:
                lists["iou"].append(masks.iou(ours, mask) if ours and mask else 0.0)
    return summed(lists, targets)

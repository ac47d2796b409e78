"""A tiny PixelLM whose answers have words and codebook runs: all but its word head is random, and that is fitted here in a second."""

from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from tokenizers_on_the_spot import tokenizer_for, write_tokenizer

from pixel_perception.bundle import Bundle
from pixel_perception.evaluation.networks import PHRASE
from pixel_perception.export.command import main
from pixel_perception.models import folder
from pixel_perception.models.configurations import CONFIGURATIONS
from pixel_perception.models.pixellm.config import PixelLMConfig
from pixel_perception.models.pixellm.images import prepare
from pixel_perception.models.pixellm.model import PixelLM
from pixel_perception.models.pixellm.text import PixelLMText

COLOURS = {"red": (220, 40, 40), "green": (40, 190, 60), "blue": (50, 70, 230)}
HEIGHT, WIDTH = 72, 96


def config() -> PixelLMConfig:
    """The tiny one with one block where it has two, so that it is exported in half the time."""
    tiny = PixelLMConfig.tiny(vocabulary=320)
    decoder = replace(tiny.decoder, transformer=replace(tiny.decoder.transformer, depth=1))
    return replace(tiny, decoder=decoder, vision=replace(tiny.vision, layers=1, levels=(-1, -2)),
                   language=replace(tiny.language, context=320))  # fmt: skip


def paint(left: str, right: str) -> np.ndarray:
    """A picture (72, 96, 3) of two boxes on grey."""
    image = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
    image[16:52, 8:40], image[24:60, 52:84] = COLOURS[left], COLOURS[right]
    return image


def lessons():
    """(image, question, answer): one box or both, in every pair of colours."""
    for left in COLOURS:
        for right in COLOURS:
            if left != right:
                image, both = paint(left, right), f"the {left} box and the {right} box"
                yield image, PHRASE.replace("{}", f"the {left} box"), f"the {left} box is {{seg}}."
                yield image, PHRASE.replace("{}", both), f"the {left} box is {{seg}} and the {right} box {{seg}}."


def train() -> PixelLM:
    """A random network whose word head is fitted to these answers. Its masks mean nothing; they are compared, not judged."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PixelLM(config()).eval()
        text, taught = PixelLMText(tokenizer_for(model.config), model.config), list(lessons())
        states, labels = [], []
        with torch.no_grad():
            model.fusion.weights.fill_(1.0)
            model.language.embed_tokens.weight.copy_(model.language.embed_tokens.weight.half())  # as a bundle stores it
            for image, question, answer in taught:
                frame, fitted = prepare(image, model.config.vision.side)
                ids = torch.tensor([text.row([(question, answer)])[0]])
                features = model.encode(frame[None], [fitted])
                embedded, valid = model.splice(ids, torch.ones_like(ids, dtype=torch.bool), features, [0])
                count = ids.shape[1] - len(text.prompt(question))
                states.append(model.language(inputs_embeds=embedded, attention_mask=valid).last_hidden_state[0, -1 - count : -1])
                labels.append(ids[0, -count:])
        states, labels = torch.cat(states), torch.cat(labels)
        weight = model.word_head.weight
        optimiser = torch.optim.LBFGS([weight], max_iter=60, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimiser.zero_grad()
            value = torch.nn.functional.cross_entropy(states @ weight.T, labels) + 1e-4 * (weight**2).sum()
            value.backward()
            return value

        optimiser.step(loss)
    return model


@dataclass(frozen=True)
class Served:
    """A model in torch, its text, its folder, and the bundle that was exported from it in fp32."""

    model: PixelLM
    text: PixelLMText
    folder: Path
    bundle: Bundle


def serve(place: Path) -> Served:
    """Write model, pictures and, by `pixel-perception export`, the bundle into a folder."""
    model = train().requires_grad_(False)
    source, pictures = folder.save(model, place / "model", write_tokenizer(place / "tokenizer", model.config)), place / "pictures"
    pictures.mkdir()
    for i, (image, *_) in enumerate(lessons()):
        Image.fromarray(image).save(pictures / f"{i}.png")
    with patch.dict(CONFIGURATIONS, {"pixellm-tiny": config}):
        main(["--config", "pixellm-tiny", str(source), "--out", str(place / "bundle"), "--language", "fp32", "--images", str(pictures),
              "--prompts", "8", "--accept-drift", "a test has few pictures", "--licence", "Apache-2.0"])  # fmt: skip
    return Served(model, PixelLMText.open(source, model.config), source, Bundle.open(place / "bundle"))

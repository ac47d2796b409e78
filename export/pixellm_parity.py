"""Do a PixelLM's bundle and its torch model answer alike? The bundle answers by itself, through the runtime; torch reads the very
same answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pixel_perception import masks
from pixel_perception.boxes import box_of_mask
from pixel_perception.bundle import Bundle
from pixel_perception.export.exported import MOST_TOKENS, QUESTIONS, read_pictures
from pixel_perception.export.parity import divergence, summed
from pixel_perception.runtime.agreement import cosine
from pixel_perception.runtime.language import Answer, Group, Prompt
from pixel_perception.runtime.pixellm import PixelLMLanguage, PixelLMVision
from pixel_perception.runtime.session import Backend


@dataclass(frozen=True, eq=False)
class Asked:
    """A picture (H, W, 3) uint8 RGB, and names of what is to be segmented in it."""

    image: np.ndarray
    question: str


def read_samples(folder: Path, count: int) -> list[Asked]:
    """As `exported.read_samples`, of whole pictures; questions name things."""
    names = tuple(q for q in QUESTIONS if not q.startswith("describe"))
    return [Asked(image, question) for image, question in read_pictures(folder, count, names)]


class Recorded(PixelLMLanguage):
    """Keeps what it chose from: (token, logits) of every choice of one answer."""

    choices: list[tuple[int, np.ndarray]]

    def _choose(self, logits: np.ndarray, state: np.ndarray, probability: bool) -> tuple[int, float]:
        token, value = super()._choose(logits, state, probability)
        self.choices.append((token, logits.copy()))
        return token, value


def reference(model, question: str, image: np.ndarray, ids: Sequence[int], tokenizer) -> tuple[np.ndarray, np.ndarray, list, np.ndarray]:
    """Torch reads an answer (ids) to a question -> states (1 + len(ids), hidden) of which the first predicts the first id, logits of
    the same, where in ids runs begin, and mask logits (T, rows, columns) of the frame."""
    import torch

    from pixel_perception.models.pixellm.images import prepare
    from pixel_perception.models.pixellm.text import PixelLMText

    prompt = PixelLMText(tokenizer, model.config).prompt(question)
    book, kind = model.config.codebook, model.word_head.weight.dtype
    with torch.inference_mode():
        frame, fitted = prepare(image, model.config.vision.side)
        features = model.encode(frame[None], [fitted])
        row = torch.tensor([[*prompt, *ids]])
        embedded, valid = model.splice(row, torch.ones_like(row, dtype=torch.bool), features, [0])
        states = model.language(inputs_embeds=embedded.to(kind), attention_mask=valid).last_hidden_state[0, -1 - len(ids) :]
        starts = [i - 1 for i in book.find(torch.tensor([-1, *ids]))]
        fused = model.fuse([states[i : i + book.length].float() for i in starts], features.tokens)
        found = model.decoder(fused, features.maps).combined if starts else fused.new_zeros(0, 1, 1)
        return states.float().numpy(), model.word_head(states).float().numpy(), starts, found.numpy()


def measure(model, bundle: Bundle, backend: Backend, samples: Sequence[Asked]) -> dict:
    """Figures of one backend, as `parity.measure` has them; masks and boxes are compared in pixels of the source images."""
    from tokenizers import Tokenizer

    vision, language = PixelLMVision(bundle, backend), Recorded(bundle, backend)
    tokenizer, template = Tokenizer.from_file(str(bundle.file("tokenizer.json"))), bundle.manifest.templates.segment
    book, forbidden = list(bundle.manifest.tokens.segments), list(bundle.manifest.tokens.segments[1:])
    lists: dict[str, list[float]] = {key: [] for key in ("cosine", "agree", "kl", "iou", "box")}
    targets = 0
    for sample in tqdm(samples, desc=f"parity {backend.name}", unit="prompt", disable=None):
        question, encoded, language.choices = template.replace("{}", sample.question), vision.encode(sample.image), []
        events = language.converse(language.prefix(*vision.visual(encoded)), [Prompt(question, None, MOST_TOKENS)], [Answer()])
        groups = [event.states for _, event in events if isinstance(event, Group)]
        runs = [book if token == book[0] else [token] for token, _ in language.choices]
        at = np.cumsum([0, *(len(run) for run in runs)])
        ids = [token for run in runs[:-1] for token in run]  # behind the last choice nothing was read
        states, logits, starts, wanted = reference(model, question, sample.image, ids, tokenizer)
        for (choice, ours), place in zip(language.choices, at, strict=False):
            theirs = logits[place].copy()
            theirs[forbidden], ours[forbidden] = -np.inf, -np.inf
            lists["agree"].append(float(theirs.argmax() == choice))
            lists["kl"].append(divergence(np.delete(theirs, forbidden), np.delete(ours, forbidden)))
        for group, start, mask in zip(groups, starts, wanted, strict=True):
            lists["cosine"] += list(cosine(group, states[start : start + len(book)]))
            targets += 1
            ours = masks.from_logits(vision.decode(encoded, vision.fuse(group[None]))[0][0], encoded.letterbox)
            theirs = masks.from_logits(mask, encoded.letterbox)
            if ours or theirs:
                lists["iou"].append(masks.iou(ours, theirs) if ours and theirs else 0.0)
            if ours and theirs:
                lists["box"].append(float(np.abs(np.subtract(box_of_mask(ours), box_of_mask(theirs))).max()))
    return summed(lists, targets)

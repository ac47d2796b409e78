"""The frozen language model as a teacher of words: phrase embeddings and noun and colour directions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pixel_perception.simulation.phrases import Vocabulary

PHRASE_LAYER = 17
"""Middle layer whose states carry a phrase's meaning best; the last layers turn it into the next word."""


class PhraseEncoder:
    """Embeds phrases with the lower layers of a frozen language model and remembers them.

    An embedding is the mean input embedding, then the mean and the last state of layer `PHRASE_LAYER` (unit length).
    The first position is left out of the mean: in Llama models it is an attention sink with a huge norm.
    """

    def __init__(self, model, tokenizer):
        """`model`: a transformers LlamaModel; its layers above `PHRASE_LAYER` are not run."""
        self.model, self.tokenizer, self.cache = model, tokenizer, {}
        self.width = 3 * model.config.hidden_size

    def __call__(self, phrases: list[str]) -> Tensor:
        """n phrases -> (n, width) float32."""
        missing = sorted({p for p in phrases if p not in self.cache})
        if missing:
            for phrase, row in zip(missing, self._encode(missing), strict=True):
                self.cache[phrase] = row
        return torch.stack([self.cache[p] for p in phrases]).float()

    @torch.no_grad()
    def _encode(self, phrases: list[str]) -> Tensor:
        ids = [self.tokenizer.encode(" " + p) for p in phrases]
        length = max(map(len, ids))
        table = torch.tensor([row + [0] * (length - len(row)) for row in ids])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in ids])
        embedded = self.model.get_input_embeddings()(table)
        out = self.model(inputs_embeds=embedded, attention_mask=mask, output_hidden_states=True, use_cache=False)
        states = F.normalize(out.hidden_states[PHRASE_LAYER + 1].float(), dim=-1)
        weight = mask[..., None].float()
        inner = weight.clone()
        inner[:, 0] = (mask.sum(1, keepdim=True) == 1).float()
        last = states[torch.arange(len(ids)), mask.sum(1) - 1]
        mean = (states * inner).sum(1) / inner.sum(1)
        return torch.cat([(embedded.float() * weight).sum(1) / weight.sum(1), mean, last], 1).to(torch.bfloat16)


class WordTeacher:
    """What the frozen language model teaches the pixels: embeddings of phrases, directions of a vocabulary's nouns and colours."""

    def __init__(self, vocabulary: Vocabulary):
        """Loads the lower layers of the base language model."""
        from pixel_perception.training.base import load_language_model

        lower, self.tokenizer = load_language_model(layers=PHRASE_LAYER + 1)
        self.encode = PhraseEncoder(lower, self.tokenizer)
        self.nouns = word_directions([*vocabulary.nouns, "table"], lower, self.tokenizer)
        self.colors = word_directions(list(vocabulary.colors), lower, self.tokenizer)


def word_directions(words: list[str], model, tokenizer) -> Tensor:
    """Unit vectors (n, hidden): the mean input embedding of each word's tokens, less the mean over all words."""
    table = model.get_input_embeddings().weight.detach().float()
    rows = torch.stack([table[tokenizer.encode(" " + w)].mean(0) for w in words])
    return F.normalize(rows - rows.mean(0), dim=-1)

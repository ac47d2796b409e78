"""Answers token by token: cached, cancellable, with the codebook run fed in one step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from pixel_perception.models.pixellm.model import ImageFeatures, PixelLM


@dataclass(frozen=True)
class Answer:
    """`ids` of the new tokens, `hidden` (t + new - 1 + n - 1, dim) of everything that was read,

    `starts` the indices in `ids` where complete codebook runs begin, `fused` (T, L, c) their targets, `steps` how
    often the language model ran.
    """

    ids: list[int]
    hidden: Tensor
    starts: list[int]
    fused: Tensor
    steps: int


class _Reader:
    """Feeds embeddings (n, dim) to the language model and returns the last states of what was just fed."""

    def __init__(self, model: PixelLM, cached: bool):
        self.model, self.steps = model, 0
        self.cache = DynamicCache(config=model.language.config) if cached else None
        self.fed, self.valid, self.states = None, None, []

    def __call__(self, embeddings: Tensor, valid: Tensor) -> Tensor:
        new = len(embeddings)
        self.valid = valid if self.valid is None else torch.cat([self.valid, valid])
        if self.cache is None:
            self.fed = embeddings if self.fed is None else torch.cat([self.fed, embeddings])
            embeddings = self.fed
        read = self.model.language(
            inputs_embeds=embeddings[None], attention_mask=self.valid[None], past_key_values=self.cache,
            use_cache=self.cache is not None,
        )
        self.steps += 1
        self.states.append(read.last_hidden_state[0, -new:])
        return self.states[-1]


@torch.no_grad()
def generate(
    model: PixelLM,
    features: ImageFeatures,
    prompt: Sequence[int],
    image: int = 0,
    limit: int = 512,
    forced: Sequence[int] | None = None,
    constrained: bool = True,
    cached: bool = True,
    on_token: Callable[[int], bool] | None = None,
) -> Answer:
    """Answer one prompt (ids with one image slot) greedily, at most `limit` new tokens.

    `constrained` forbids codebook tokens outside their run, and feeds the whole run in one step once its first token
    is chosen, so groups are never partial. `forced` gives the answer instead of choosing it. `cached` = False reads
    everything again at each step, for comparison. `on_token` hears every new id and stops the answer by returning
    False.
    """
    book, end = model.config.codebook, model.config.language.end
    device = features.tokens.device
    ids = torch.tensor([list(prompt)], device=device)
    embeddings, valid = model.splice(ids, torch.ones_like(ids, dtype=torch.bool), features, [image])
    reader = _Reader(model, cached)
    state = reader(embeddings[0], valid[0])[-1]
    new, predicting, script = [], [], iter(forced or ())
    go_on = True
    while go_on and len(new) < limit:
        token = _choose(model, state, constrained) if forced is None else next(script, None)
        if token is None:
            break
        run = [token]
        if constrained and token == book.first:
            run = book.ids
            script = iter(list(script)[len(run) - 1 :])
            if len(new) + len(run) > limit:
                break
        states = torch.cat([state[None], _read(model, reader, run)]) if token != end else state[None]
        for token, predictor in zip(run, states[: len(run)], strict=True):
            new.append(token)
            predicting.append(predictor)
            go_on = go_on and (on_token is None or on_token(token) is not False) and token != end
        state = states[-1]
    starts = book.find(torch.tensor([end, *new]))  # an answer may begin with a run: the prompt stands before it
    starts = [i - 1 for i in starts]
    groups = [torch.stack(predicting[i : i + book.length]) for i in starts]
    fused = model.fuse(groups, features.tokens)
    hidden = torch.cat(reader.states)
    return Answer(new, hidden, starts, fused, reader.steps)


def _read(model: PixelLM, reader: _Reader, run: list[int]) -> Tensor:
    ids = torch.tensor(run, device=model.word_head.weight.device)
    return reader(model.language.embed_tokens(ids), torch.ones_like(ids, dtype=torch.bool))


def _choose(model: PixelLM, state: Tensor, constrained: bool) -> int:
    logits = model.word_head(state)
    if constrained:
        logits[model.config.codebook.ids[1:]] = -torch.inf
    return int(logits.argmax())

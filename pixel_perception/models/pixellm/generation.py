"""Answers token by token: cached, cancellable, several at once, with the codebook run fed in one step."""

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
    heard = None if on_token is None else lambda row, token: on_token(token)
    return generate_batch(model, features, [prompt], [image], limit, None if forced is None else [forced], constrained, cached, heard)[0]


@torch.no_grad()
def generate_batch(
    model: PixelLM,
    features: ImageFeatures,
    prompts: Sequence[Sequence[int]],
    image_of_prompt: Sequence[int],
    limit: int = 512,
    forced: Sequence[Sequence[int]] | None = None,
    constrained: bool = True,
    cached: bool = True,
    on_token: Callable[[int, int], bool] | None = None,
) -> list[Answer]:
    """Answer several prompts about the same or different images at once; each answer is the one it would get alone.

    As `generate`; `on_token` hears the index of the prompt and the id, and stops that prompt's answer. Rows of different
    lengths are padded at the right in every step, and no row ever attends to padding.
    """
    device = features.tokens.device
    spliced = []
    for prompt, image in zip(prompts, image_of_prompt, strict=True):
        ids = torch.tensor([list(prompt)], device=device)
        embeddings, valid = model.splice(ids, torch.ones_like(ids, dtype=torch.bool), features, [image])
        spliced.append((embeddings[0], valid[0]))
    reader = _Reader(model, cached)
    states = reader([x for x, _ in spliced], [valid for _, valid in spliced])
    scripts = [None] * len(prompts) if forced is None else forced
    rows = [_Row(model, x[-1], limit, script, constrained) for x, script in zip(states, scripts, strict=True)]
    while any(row.open for row in rows):
        runs = _choose(model, rows, constrained)
        # The end is never read: nothing follows it.
        ids = [torch.tensor([i for i in run if i != model.config.language.end], dtype=torch.int64, device=device) for run in runs]
        states = reader([model.language.embed_tokens(x) for x in ids], [torch.ones_like(x, dtype=torch.bool) for x in ids])
        for index, (row, run, read) in enumerate(zip(rows, runs, states, strict=True)):
            row.take(run, read, on_token and (lambda token, index=index: on_token(index, token)))
    fused = model.fuse([group for row in rows for group in row.groups()], features.tokens).split([len(row.groups()) for row in rows])
    return [Answer(row.ids, torch.cat(parts), row.starts, of_row, steps)
            for row, of_row, parts, steps in zip(rows, fused, reader.states, reader.steps, strict=True)]  # fmt: skip


class _Reader:
    """Feeds ragged rows of embeddings (n_i, dim) to the language model and returns the states of what was just fed.

    Columns of the cache are steps in time; a row that feeds less than another leaves holes, which are masked, and its
    positions count only its own columns.
    """

    def __init__(self, model: PixelLM, cached: bool):
        self.model, self.steps = model, []
        self.cache = DynamicCache(config=model.language.config) if cached else None
        self.fed, self.valid, self.positions, self.states = None, None, None, []

    def __call__(self, embeddings: Sequence[Tensor], valid: Sequence[Tensor]) -> list[Tensor]:
        lengths = [len(x) for x in embeddings]
        if not any(lengths):
            return list(embeddings)
        x, seen = (torch.nn.utils.rnn.pad_sequence(list(part), batch_first=True) for part in (embeddings, valid))
        start = 0 if self.positions is None else self.positions.amax(1, keepdim=True) + 1
        positions = start + torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        # Holes repeat the row's last position, so that the next step counts on from there.
        positions = torch.minimum(positions, start + torch.tensor(lengths, device=x.device)[:, None] - 1).clamp(min=0)
        self.valid = seen if self.valid is None else torch.cat([self.valid, seen], 1)
        self.positions = positions if self.positions is None else torch.cat([self.positions, positions], 1)
        if self.cache is None:
            x = self.fed = x if self.fed is None else torch.cat([self.fed, x], 1)
            positions = self.positions
        read = self.model.language(inputs_embeds=x, attention_mask=self.valid, position_ids=positions, past_key_values=self.cache,
                                   use_cache=self.cache is not None).last_hidden_state[:, -seen.shape[1] :]  # fmt: skip
        states = [row[:length] for row, length in zip(read, lengths, strict=True)]
        self.steps = self.steps or [0] * len(lengths)
        self.states = self.states or [[] for _ in lengths]
        for i, length in enumerate(lengths):
            self.steps[i] += length > 0
            self.states[i].append(states[i])
        return states


class _Row:
    """One answer as it grows: `state` predicts the next token."""

    def __init__(self, model: PixelLM, state: Tensor, limit: int, forced: Sequence[int] | None, constrained: bool):
        self.book, self.end, self.limit, self.constrained = model.config.codebook, model.config.language.end, limit, constrained
        self.script = None if forced is None else list(forced)
        self.ids, self.predicting, self.state, self.open = [], [], state, limit > 0

    def choose(self, token: int) -> list[int]:
        """What is read next, given the likeliest token; nothing, and the row is closed, when it must stop here."""
        if self.script is not None:
            if not self.script:
                self.open = False
                return []
            token = self.script.pop(0)
        run = self.book.ids if self.constrained and token == self.book.first else [token]
        if len(self.ids) + len(run) > self.limit:
            self.open = False
            return []
        if self.script is not None:
            del self.script[: len(run) - 1]
        return run

    def take(self, run: Sequence[int], read: Tensor, on_token: Callable[[int], bool] | None) -> None:
        """Add what was read, with the states after each of its tokens."""
        states = [self.state, *read]
        for token, predictor in zip(run, states[: len(run)], strict=True):
            self.ids.append(token)
            self.predicting.append(predictor)
            self.open = self.open and (on_token is None or on_token(token) is not False) and token != self.end
        self.state = states[-1]
        self.open = self.open and len(self.ids) < self.limit

    @property
    def starts(self) -> list[int]:
        """Where complete codebook runs begin."""
        # An answer may begin with a run: the prompt stands before it.
        return [i - 1 for i in self.book.find(torch.tensor([self.end, *self.ids]))]

    def groups(self) -> list[Tensor]:
        """The states (L N, dim) that predict each run."""
        return [torch.stack(self.predicting[i : i + self.book.length]) for i in self.starts]


def _choose(model: PixelLM, rows: Sequence[_Row], constrained: bool) -> list[list[int]]:
    logits = model.word_head(torch.stack([row.state for row in rows]))
    if constrained:
        logits[:, model.config.codebook.ids[1:]] = -torch.inf
    return [row.choose(token) if row.open else [] for row, token in zip(rows, logits.argmax(-1).tolist(), strict=True)]

"""Greedy and beam decoding over any language model with ``encode`` and ``step``, one cached token at a time."""

import torch


@torch.no_grad()
def greedy(model, memory, begin: int, end: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Write the most likely token again and again, never the same one twice in a row.

    Args:
        model: T5 or TextDecoder.
        memory: what ``model.encode`` gave for B rows.
        begin, end: ids of the first token and of the one that ends a text.
        length: size of the answer, which starts with ``begin`` and always ends with ``end``.

    Returns:
        Tokens (B, length) int64, filled up with ``end``, and the mean log-probability of the written
        tokens (B,).
    """
    rows, device = memory.valid.shape[0], memory.valid.device
    tokens = torch.full((rows, length), end, dtype=torch.int64, device=device)
    tokens[:, 0] = begin
    total = torch.zeros(rows, device=device)
    past = None
    for i in range(1, length - 1):
        logits, _, past = model.step(tokens[:, i - 1 : i], memory, past)
        # Repeating a word at once is the commonest failure of short captions; GRiT forbids it and so does the code.
        last = tokens[:, i - 1 : i]
        scores = logits[:, -1].float()
        scores = scores.scatter(1, last, scores.gather(1, last).clamp(max=-1e4)).log_softmax(-1)
        best, choice = scores.max(-1)
        done = tokens[:, i - 1] == end
        tokens[:, i] = choice.masked_fill(done, end)
        total = total + best.masked_fill(done, 0.0)
        if done.all():
            break
    return tokens, total / ((tokens != end).sum(-1) - 1).clamp(min=1)


@torch.no_grad()
def beam(model, memory, begin: int, end: int, length: int, beams: int = 4, per_beam: int = 2,
         alpha: float = 0.6) -> tuple[torch.Tensor, torch.Tensor]:
    """Search with ``beams`` hypotheses and a length penalty ((5 + n) / 6) ** alpha.

    Args:
        per_beam: ``beams * per_beam`` continuations are examined at each step.
        alpha: exponent of the length penalty.
        (the others as in ``greedy``)

    Returns:
        Tokens (B, beams, length) int64 and scores (B, beams), worst first: the answer is the last one.
        A row in which nothing ended returns its live hypotheses and their plain log-probabilities.
    """
    rows, device = memory.valid.shape[0], memory.valid.device
    never = -1e7
    memory = memory.repeat(beams)
    live = torch.full((rows, beams, length), end, dtype=torch.int64, device=device)
    live[..., 0] = begin
    live_score = torch.tensor([0.0] + [never] * (beams - 1), device=device).repeat(rows, 1)
    ended = torch.zeros_like(live)
    ended_score = torch.full((rows, beams), never, device=device)
    any_ended = torch.zeros(rows, beams, dtype=torch.bool, device=device)
    past = None

    def penalty(n: int) -> float:
        return ((5.0 + n) / 6.0) ** alpha

    def take(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1])) if x.ndim == 3 else x.gather(1, index)

    for i in range(1, length - 1):
        hopeless = torch.where(any_ended, ended_score.amin(1, keepdim=True), never) > live_score[:, -1:] / penalty(length)
        if hopeless.all():
            break
        logits, _, past = model.step(live[:, :, i - 1].reshape(-1, 1), memory, past)
        scores = logits[:, -1].float().log_softmax(-1).unflatten(0, (rows, beams)) + live_score[..., None]
        vocabulary = scores.shape[-1]
        top_score, top = scores.flatten(1).topk(beams * per_beam)
        origin = top // vocabulary
        candidates = take(live, origin)
        candidates[..., i] = top % vocabulary
        stops = candidates[..., i] == end

        live_score, chosen = (top_score + never * stops).topk(beams)
        live_score, chosen = live_score.flip(1), chosen.flip(1)
        live = take(candidates, chosen)
        parents = (take(origin, chosen) + beams * torch.arange(rows, device=device)[:, None]).flatten()
        past = [tuple(t[parents] for t in pair) for pair in past]

        ended = torch.cat([ended, candidates], 1)
        ended_score = torch.cat([ended_score, top_score / penalty(i) + never * ~stops], 1)
        any_ended = torch.cat([any_ended, stops], 1)
        ended_score, best = ended_score.topk(beams)
        ended_score, best = ended_score.flip(1), best.flip(1)
        ended, any_ended = take(ended, best), take(any_ended, best)

    found = any_ended.any(1, keepdim=True)
    return torch.where(found[..., None], ended, live), torch.where(found, ended_score, live_score)

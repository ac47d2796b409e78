"""How names and arrays of somebody else's weights become ours."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

Shape = tuple[int, ...]


def same(x):
    """No change."""
    return x


@dataclass(frozen=True)
class Change:
    """How a tensor of another shape still becomes ours.

    Attributes:
        status, note: what the mapping says about it.
        fits: whether their shape can become ours.
        apply: their tensor and our initial one to a tensor of our shape.
    """

    status: str
    note: str
    fits: Callable[[Shape, Shape], bool]
    apply: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Rule:
    """One kind of tensor.

    Attributes:
        pattern: regular expression for a whole name of theirs.
        name: our name, with the groups of the pattern, or a function of the match.
        turn: how the tensor changes.
        slot: expands to the row of our tensor that theirs fills, such as r"\\1"; None when it fills all of it.
        change: what else can be done where shapes differ.
    """

    pattern: str
    name: str | Callable[[re.Match], str]
    turn: Callable[[Tensor], Tensor] = same
    slot: str | None = None
    change: Change | None = None


@dataclass(frozen=True)
class Place:
    """Where a tensor of theirs goes: our name, the row there (None for all of it), and what happens on the way."""

    name: str
    slot: int | None
    turn: Callable[[Tensor], Tensor]
    change: Change | None


@dataclass(frozen=True)
class Layout:
    """A published layout.

    Attributes:
        title: what it is called in messages.
        sign: regular expression that finds something in one of its names, and in none of the layouts after it.
        rules: tried in order.
        unused: patterns of their names that nothing of ours needs, each with the reason.
        fresh: prefixes or endings of our names that they lack and that keep their initial values.
        absent: prefixes of our names that a smaller network of ours may lack, each with the reason.
        start: training starts from it, so that parts that nobody has published start fresh.
        text: it brings the language model, so the tokenizer beside it is ours too.
        plain: their name without what training wrappers put around it.
        lora_scale: factor of LoRA's updates that lie beside the weights.
    """

    title: str
    sign: str
    rules: Sequence[Rule]
    unused: Mapping[str, str] = field(default_factory=dict)
    fresh: tuple[str, ...] = ()
    absent: Mapping[str, str] = field(default_factory=dict)
    start: bool = False
    text: bool = False
    plain: Callable[[str], str] = same
    lora_scale: float = 0.0

    def place(self, name: str) -> Place | None:
        """Our place for a plain name of theirs; None when no rule knows it."""
        for rule in self.rules:
            if match := re.fullmatch(rule.pattern, name):
                slot = None if rule.slot is None else int(match.expand(rule.slot))
                ours = match.expand(rule.name) if isinstance(rule.name, str) else rule.name(match)
                return Place(ours, slot, rule.turn, rule.change)
        return None

    def reason_unused(self, name: str) -> str:
        """Why a plain name of theirs is left alone; empty when it is not."""
        return next((why for pattern, why in self.unused.items() if re.fullmatch(pattern, name)), "")

    def reason_absent(self, name: str) -> str:
        """Why a name of ours may be without a place in this network; empty when it may not."""
        return next((why for prefix, why in self.absent.items() if name.startswith(prefix)), "")

    def is_fresh(self, name: str) -> bool:
        """Whether a name of ours may be missing from their weights."""
        return name.startswith(self.fresh) or name.endswith(self.fresh)

"""How names and arrays of somebody else's weights become ours."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor


def same(x: Tensor) -> Tensor:
    """No change."""
    return x


@dataclass(frozen=True)
class Rule:
    """One kind of tensor.

    Attributes:
        pattern: regular expression for a whole name of theirs.
        name: our name, with the groups of the pattern.
        turn: how the tensor changes.
        slot: expands to the row of our tensor that theirs fills, such as r"\\1"; None when it fills all of it.
    """

    pattern: str
    name: str
    turn: Callable[[Tensor], Tensor] = same
    slot: str | None = None


@dataclass(frozen=True)
class Place:
    """Where a tensor of theirs goes: our name, the row there (None for all of it), and how it turns."""

    name: str
    slot: int | None
    turn: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Layout:
    """A published layout.

    Attributes:
        rules: tried in order.
        unused: patterns of their names that nothing of ours needs, each with the reason.
        fresh: prefixes or endings of our names that they lack and that keep their initial values.
        parts: prefixes of our names that they must fill; by default everything.
    """

    rules: list[Rule]
    unused: Mapping[str, str] = field(default_factory=dict)
    fresh: tuple[str, ...] = ()
    parts: tuple[str, ...] = ("",)

    def place(self, name: str) -> Place | None:
        """Our place for a name of theirs; None when no rule knows it."""
        for rule in self.rules:
            if match := re.fullmatch(rule.pattern, name):
                slot = None if rule.slot is None else int(match.expand(rule.slot))
                return Place(match.expand(rule.name), slot, rule.turn)
        return None

    def reason_unused(self, name: str) -> str | None:
        """Why a name of theirs is left alone; None when it is not."""
        return next((why for pattern, why in self.unused.items() if re.fullmatch(pattern, name)), None)

    def is_fresh(self, name: str) -> bool:
        """Whether a name of ours may be missing from their weights."""
        return name.startswith(self.fresh) or name.endswith(self.fresh)

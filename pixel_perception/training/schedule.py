"""Learning rates: how they rise and fall over a run, and how they differ between the parts of a network."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import nn

from pixel_perception.training.config import ConfigError, Optimiser, Schedule

BLOCK = re.compile(r"(?:^|\.)semantic\.blocks\.(\d+)\.")


def factor(schedule: Schedule, step: int, done: float) -> float:
    """What the rates are multiplied with in step `step` (from 0), when the share `done` of the budget is spent.

    A linear rise over `warmup` steps, then to 0 along a line, or along a half cosine to `floor`. The cosine runs over the whole
    budget as in PixelLLM's code, the line from the end of the warm-up as in PixelLM's.
    """
    rise = min(1.0, (step + 1) / schedule.warmup) if schedule.warmup else 1.0
    left = 1 - min(done, 1.0)
    if schedule.decay == "cosine":
        return rise * (schedule.floor + (1 - schedule.floor) * 0.5 * (1 - math.cos(math.pi * left)))
    if schedule.decay == "linear":
        warm = schedule.warmup / schedule.steps if schedule.steps else 0.0
        return rise * min(1.0, left / max(1 - warm, 1e-9))
    return rise


def groups(network: nn.Module, config: Optimiser) -> list[dict]:
    """Parameter groups for AdamW, each with its full rate as "base".

    A rate is `rate` times the factor of the longest beginning of the parameter's name in `factors`, times `layer_decay` for every
    block of EVA-02 that lies behind it. Vectors do not decay. Raises ConfigError for a factor that no parameter has.
    """
    found: dict[tuple[float, bool], list[nn.Parameter]] = {}
    known, unused = layers(network), set(config.factors)
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        part = part_factor(name, config.factors)
        unused -= {prefix for prefix in unused if name.startswith((prefix, f"model.{prefix}"))}
        rate = config.rate * part * config.layer_decay ** behind(name, known)
        found.setdefault((rate, parameter.ndim > 1), []).append(parameter)
    if unused:
        raise ConfigError(f"optimiser.factors: no parameter that learns begins with {sorted(unused)[0]!r}")
    return [{"params": parameters, "lr": rate, "base": rate, "weight_decay": config.weight_decay if decays else 0.0}
            for (rate, decays), parameters in sorted(found.items(), key=lambda item: item[0])]  # fmt: skip


def part_factor(name: str, factors: Mapping[str, float]) -> float:
    """The factor of the longest beginning of `name`, with or without "model." before it; 1 without any."""
    fitting = [prefix for prefix in factors if name.startswith((prefix, f"model.{prefix}"))]
    return factors[max(fitting, key=len)] if fitting else 1.0


def layers(network: nn.Module) -> int:
    """Blocks of EVA-02, 0 in a network without it."""
    return max((int(match[1]) + 1 for name, _ in network.named_parameters() if (match := BLOCK.search(name))), default=0)


def behind(name: str, count: int) -> int:
    """How many steps of layer decay a parameter has: none behind the last of `count` blocks, all of them before the first."""
    if match := BLOCK.search(name):
        return count - 1 - int(match[1])
    first = re.search(r"(?:^|\.)semantic\.(patch|cls|position)", name)
    return count if first else 0

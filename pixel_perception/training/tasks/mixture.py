"""Several data sets as one endless stream: drawn by weight, seeded, and resumable from a few numbers.

Draw k depends on nothing but the seed and k, and each data set is walked in a new random order every epoch, so the state is the
number of draws and how far each data set has come. Of W processes each is given every W-th draw: together they see the same
stream, in the same order, as one process would.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from pixel_perception.training.tasks.sample import Sample, Task, TaskError

PIXELLM = {
    "semantic": (2, ("ade20k", "coco_stuff", "pascal_part", "paco")),
    "referring": (9, ("refclef", "refcoco", "refcoco+", "refcocog")),
    "vqa": (2, ("llava_instruct",)),
    "muse": (4, ("muse",)),
}
"""PixelLM's families with their weights; inside of a family all data sets are alike."""
PIXELLLM_TRACE = {"captions": (1, ("coco_captions",)), "traces": (2, ("localized_narratives",))}
PIXELLLM_REFERRING = {"phrases": (1, ("flickr30k",)), "goldg": (6, ("goldg",))}
"""PixelLLM's stages; GoldG's COCO and Visual Genome parts (5 and 1 in the release) are one file."""


@dataclass(frozen=True)
class Drawn:
    """One draw: the data set's name, the sample, and a generator of its own for phrasing and augmentation."""

    name: str
    sample: Sample
    rng: random.Random


class Mixture(Iterator[Drawn]):
    """An endless stream of samples of several tasks.

    `tasks` and `weights` share their names; a weight of 0 leaves a task out. `rank` of `world` processes. Raises TaskError for
    names that do not match, weights that are no weights, and, while iterating, for a damaged record.
    """

    def __init__(self, tasks: Mapping[str, Task], weights: Mapping[str, float], seed: int = 0, rank: int = 0, world: int = 1) -> None:
        if set(tasks) != set(weights):
            odd = ", ".join(sorted(set(tasks) ^ set(weights)))
            raise TaskError("mixture", f"expected a weight for every data set and no other, found {odd} on one side only")
        if any(not 0 <= w < float("inf") for w in weights.values()) or not sum(weights.values()):
            raise TaskError("mixture", f"expected weights of 0 or more, at least one above 0, found {dict(weights)}")
        if not 0 <= rank < world:
            raise TaskError("mixture", f"expected a rank of 0 to {world - 1}, found {rank}")
        self.tasks, self.names = tasks, [name for name in tasks if weights[name] > 0]
        self.weights = {name: float(weights[name]) for name in self.names}
        self.seed, self.rank, self.world = seed, rank, world
        self._bounds = list(accumulate(self.weights.values()))
        self._drawn = 0
        self._seen = dict.fromkeys(self.names, 0)
        self._orders: dict[str, tuple[int, list[int]]] = {}

    def __next__(self) -> Drawn:
        # One draw for each process; all keep count of all, so that any process's state is everybody's.
        mine = [self._draw() for _ in range(self.world)][self.rank]
        name, index, number = mine
        return Drawn(name, self.tasks[name][index], random.Random(f"{self.seed}:{number}:sample"))

    def state(self) -> dict:
        """All that is needed to go on: JSON values only, the same in every process."""
        sizes = {name: len(self.tasks[name]) for name in self.names}
        return {"seed": self.seed, "drawn": self._drawn, "seen": dict(self._seen), "sizes": sizes, "weights": dict(self.weights)}

    def resume(self, state: Mapping) -> None:
        """Go on where `state` was taken. Raises TaskError where data sets, sizes, weights or seed are not those of the state."""
        now = self.state()
        for key in ("seed", "sizes", "weights"):
            if state.get(key) != now[key]:
                raise TaskError("mixture", f"the saved state has {key} {state.get(key)} and this run {now[key]}: not the same run")
        self._drawn, self._seen = int(state["drawn"]), {name: int(state["seen"][name]) for name in self.names}

    def _draw(self) -> tuple[str, int, int]:
        number = self._drawn
        point = random.Random(f"{self.seed}:{number}").random() * self._bounds[-1]
        name = next((n for n, bound in zip(self.names, self._bounds, strict=True) if point < bound), self.names[-1])
        index = self._index(name, self._seen[name])
        self._drawn += 1
        self._seen[name] += 1
        return name, index, number

    def _index(self, name: str, seen: int) -> int:
        epoch, place = divmod(seen, len(self.tasks[name]))
        if name not in self._orders or self._orders[name][0] != epoch:
            order = list(range(len(self.tasks[name])))
            random.Random(f"{self.seed}:{name}:{epoch}").shuffle(order)
            self._orders[name] = epoch, order
        return self._orders[name][1][place]


def spread(families: Mapping[str, tuple[float, Sequence[str]]], present: Sequence[str] | None = None) -> dict[str, float]:
    """Weights of data sets from those of families, shared evenly inside of each; of `present` ones only, where given.

    Raises TaskError when nothing is left.
    """
    out = {}
    for weight, members in families.values():
        members = [m for m in members if present is None or m in present]
        out |= {m: weight / len(members) for m in members}
    if not out:
        raise TaskError("mixture", f"none of its data sets is there: {', '.join(m for _, ms in families.values() for m in ms)}")
    return out

"""The stream of samples: weights, seed, epochs, several processes, and going on where it stopped."""

import json
from collections import Counter
from pathlib import Path

import pytest

from pixel_perception.training.tasks.mixture import PIXELLM, Mixture, spread
from pixel_perception.training.tasks.registry import DATA_SETS
from pixel_perception.training.tasks.sample import Sample, Source, Task, TaskError


def task(name, count):
    return Task(name, "train", Path(name), list(range(count)), lambda i: Sample(Path(f"{name}-{i}"), (4, 4), Source(name, str(i))))


def mixture(seed=0, weights=None, **more):
    return Mixture({"a": task("a", 5), "b": task("b", 7)}, weights or {"a": 3, "b": 1}, seed, **more)


def take(stream, count):
    return [(d.sample.image.name, d.rng.random()) for d, _ in zip(stream, range(count), strict=False)]


def test_weights():
    counts = Counter(name[0] for name, _ in take(mixture(), 4000))
    assert 0.72 < counts["a"] / 4000 < 0.78
    assert {name[0] for name, _ in take(mixture(weights={"a": 0, "b": 1}), 50)} == {"b"}


def test_the_seed_decides_everything():
    assert take(mixture(3), 60) == take(mixture(3), 60) != take(mixture(4), 60)


def test_every_epoch_sees_every_record_once_in_another_order():
    names = [name for name, _ in take(mixture(weights={"a": 1, "b": 0}), 15)]
    epochs = [names[i : i + 5] for i in (0, 5, 10)]
    assert all(sorted(e) == sorted(epochs[0]) for e in epochs) and len({tuple(e) for e in epochs}) > 1


@pytest.mark.parametrize("stop", [0, 1, 23])
def test_going_on_is_the_same_as_not_stopping(stop):
    whole = take(mixture(), 60)
    first = mixture()
    take(first, stop)
    # zip draws one more than it is told; the state is taken where the caller stands.
    state = json.loads(json.dumps(first.state()))
    second = mixture()
    second.resume(state)
    drawn = state["drawn"]
    assert take(second, 30) == whole[drawn : drawn + 30]


def test_processes_share_one_stream():
    whole = take(mixture(), 60)
    parts = [mixture(rank=r, world=3) for r in range(3)]
    taken = [[(d.sample.image.name, d.rng.random()) for d in (next(p) for _ in range(20))] for p in parts]
    assert [taken[k % 3][k // 3] for k in range(60)] == whole
    assert parts[0].state() == parts[1].state() == parts[2].state()
    alone = mixture()
    alone.resume(parts[1].state())
    assert alone.state()["drawn"] == 60


def test_another_run_is_not_continued():
    state = mixture().state()
    for other in (mixture(1), mixture(weights={"a": 1, "b": 1}), Mixture({"a": task("a", 6), "b": task("b", 7)}, {"a": 3, "b": 1})):
        with pytest.raises(TaskError, match="not the same run"):
            other.resume(state)


@pytest.mark.parametrize(("weights", "said"), [({"a": 1}, "found b"), ({"a": -1, "b": 1}, "weights"), ({"a": 0, "b": 0}, "above 0"),
                                               ({"a": float("nan"), "b": 1}, "weights")])  # fmt: skip
def test_bad_weights(weights, said):
    with pytest.raises(TaskError, match=said):
        mixture(weights=weights)


def test_families():
    weights = spread(PIXELLM)
    assert weights["refcoco"] == 9 / 4 and sum(weights.values()) == 17 and set(weights) <= set(DATA_SETS)
    assert spread(PIXELLM, ["refcoco", "muse"]) == {"refcoco": 9, "muse": 4}
    with pytest.raises(TaskError, match="none of its data sets"):
        spread(PIXELLM, ["flickr30k"])

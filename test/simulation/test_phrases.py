"""Phrases mean what they say: checked on scenes written by hand."""

import random

import pytest

from pixel_perception.simulation.instructions import FAMILIES, instructions
from pixel_perception.simulation.phrases import Vocabulary, absent, affordances, clash, groups, means, plural, single
from pixel_perception.simulation.scene import SceneObject

SIZE = (640, 480)
VOCABULARY = Vocabulary(("banana", "box", "cracker box", "cup", "hammer", "mug", "plate"), ("blue", "red", "white", "yellow"))


def thing(label, noun, color, x, side=60, synonyms=()):
    box = (x, 200, x + side, 200 + side)
    return SceneObject(label, f"{color}-{noun}", noun, color, tuple(synonyms), box, side * side, (0.0, 0.0, 0.8))


SCENE = (thing(1, "cup", "red", 40), thing(2, "cup", "blue", 300), thing(3, "cracker box", "red", 420, 90),
         thing(4, "banana", "yellow", 160, synonyms=("fruit",)))  # fmt: skip


def test_single_phrases_mean_one_object():
    found = {p.text: p.labels for p in single(SCENE, SIZE)}
    assert "cup" not in found  # two of them
    assert found["red cup"] == (1,) and found["blue cup"] == (2,)
    assert found["leftmost cup"] == (1,) and found["rightmost cup"] == (2,)
    assert found["banana"] == found["fruit"] == (4,)
    assert found["cup left of the banana"] == (1,) and found["cup right of the banana"] == (2,)
    assert found["leftmost object"] == (1,) and found["biggest object"] == (3,)
    assert "red object" not in found  # cup and box are both red


def test_groups_hold_every_object_of_a_kind():
    found = {p.text: set(p.labels) for p in groups(SCENE)}
    assert found["cups"] == {1, 2}
    assert found["red objects"] == {1, 3}
    assert all(p.quantity == "all" for p in groups(SCENE))


def test_a_noun_names_its_own_kinds_only():
    assert means("box", SCENE[2]) and means("cracker box", SCENE[2])
    assert not means("cracker", SCENE[2])
    assert clash("red", "orange") and not clash("red", "blue")


def test_affordances_point_at_what_serves():
    found = {p.text: set(p.labels) for p in affordances(SCENE)}
    assert found["something to drink from"] == {1, 2}
    assert found["something to hit a nail"] == set()


@pytest.mark.parametrize("quantity", ["one", "all"])
def test_absent_phrases_mean_nothing(quantity):
    rng = random.Random(0)
    present = {p.text for p in single(SCENE, SIZE)} | {p.text for p in groups(SCENE)}
    texts = {absent(SCENE, VOCABULARY, rng, quantity).text for _ in range(300)}
    assert not texts & present
    assert "box" not in texts and "cup" not in texts
    if quantity == "one":
        assert {"hammer", "white cup"} <= texts


@pytest.mark.parametrize(("noun", "many"), [("knife", "knives"), ("cup", "cups"), ("box", "boxes"), ("scissors", "scissors"),
                                            ("computer mouse", "computer mice"), ("jar of blocks", "jars of blocks"),
                                            ("toy", "toys"), ("strawberry", "strawberries")])  # fmt: skip
def test_plural(noun, many):
    assert plural(noun) == many


def test_instructions_repeat_with_the_seed_and_cover_all_families():
    first, again = (instructions(SCENE, SIZE, random.Random(5), VOCABULARY) for _ in range(2))
    assert first == again
    assert {i.family for i in first} == set(FAMILIES)


def test_dense_captions_name_every_object_in_its_place():
    item = next(i for i in instructions(SCENE, SIZE, random.Random(1), VOCABULARY) if i.family == "dense")
    assert {item.caption[begin:end]: label for begin, end, label in item.words} == {o.name: o.label for o in SCENE}
    assert not item.targets and not item.text


def test_narration_places_each_name_from_left_to_right():
    item = next(i for i in instructions(SCENE, SIZE, random.Random(1), VOCABULARY) if i.family == "narrate")
    assert [item.caption[begin:end] for begin, end, _ in item.words] == ["red cup", "yellow banana", "blue cup", "red cracker box"]
    assert [label for _, _, label in item.words] == [1, 4, 2, 3]

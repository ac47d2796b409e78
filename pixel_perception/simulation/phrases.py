"""Phrases that name objects of a scene: which objects a phrase means, and phrases that mean none of them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from pixel_perception.simulation.catalog import PALETTE, Catalog
from pixel_perception.simulation.scene import SceneObject

SIMILAR = ({"white", "beige", "silver", "gray"}, {"gray", "black", "silver"}, {"red", "orange", "brown"},
           {"red", "pink", "purple"}, {"yellow", "orange", "beige"}, {"blue", "cyan"}, {"blue", "purple"}, {"green", "cyan"})  # fmt: skip
"""Colours that people mix up: never used against each other in a phrase that must be false."""

AFFORDANCES: dict[str, tuple[str, ...]] = {
    "something to drink from": ("cup", "mug"),
    "something I can drink": ("soda can", "milk carton", "bottle", "soda box"),
    "a piece of fruit": ("apple", "banana", "lemon", "orange", "peach", "pear", "plum", "strawberry"),
    "something to write with": ("marker",),
    "something to tighten a screw": ("screwdriver", "power drill"),
    "something to hit a nail": ("hammer", "mallet"),
    "something that cuts": ("scissors", "knife"),
    "something to clean up with": ("sponge", "spray bottle", "bleach bottle", "towel"),
    "something to wear on my feet": ("shoe", "sneaker", "boot", "sandal", "soccer shoe"),
    "something to wear on my head": ("hat",),
    "a ball to play with": ("baseball", "golf ball", "soccer ball", "racquetball", "softball", "tennis ball"),
    "something to turn a bolt": ("wrench",),
    "something that gives light": ("flashlight",),
    "something to eat soup with": ("spoon",),
    "something to flip a pancake": ("spatula",),
    "something to fry an egg in": ("frying pan",),
    "something that holds things together": ("clamp", "c-clamp", "roll of tape"),
    "something to serve food on": ("plate", "bowl"),
    "something to build a toy house with": ("lego brick", "block", "foam brick", "wood block"),
    "something with electronics inside": ("computer mouse", "hard drive", "handheld console", "tablet", "power drill"),
    "something for breakfast": ("cereal box", "bread", "pop tarts box"),
    "canned food": ("soup can", "meat can", "tuna can", "fish tin"),
    "a toy animal": ("bull figure", "dinosaur", "dog statue", "lion figure", "rhino figure", "unicorn", "plush whale"),
    "a toy vehicle": ("toy airplane", "toy bus", "toy train"),
    "something to lock a door": ("padlock",),
    "something to open a can": ("can opener",),
    "something sweet": ("candy bar", "pocky box", "pudding box", "gelatin box"),
    "something to season food": ("mustard bottle",),
}
"""What a person may want, and the nouns of objects that serve. Phrases whose nouns a catalogue lacks are only asked in vain."""


@dataclass(frozen=True)
class Phrase:
    """A noun phrase and the objects it means (`labels` of the scene; empty when it means none)."""

    text: str
    form: str
    quantity: str
    """ "one" or "all"."""
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Vocabulary:
    """All nouns and colours that phrases may use."""

    nouns: tuple[str, ...]
    colors: tuple[str, ...]

    @staticmethod
    def of(catalog: Catalog) -> Vocabulary:
        """The vocabulary of an asset folder."""
        return Vocabulary(tuple(sorted({a.noun for a in catalog.assets})),
                          tuple(sorted({a.color for a in catalog.assets} | set(PALETTE))))


def means(noun: str, thing: SceneObject) -> bool:
    """Whether a noun may name an object: "box" means a cracker box, "cracker box" does not mean a box."""
    return any(noun == word or word.endswith(" " + noun) for word in thing.words)


def clash(a: str, b: str) -> bool:
    """Whether two colours are equal or easily mixed up."""
    return a == b or "colorful" in (a, b) or any(a in group and b in group for group in SIMILAR)


def plural(noun: str) -> str:
    """Plural of an English noun phrase of the catalogue."""
    if " of " in noun:
        head, rest = noun.split(" of ", 1)
        return f"{plural(head)} of {rest}"
    if noun.endswith(("scissors", "blocks", "dice")):
        return noun
    for single, many in (("knife", "knives"), ("mouse", "mice"), ("die", "dice")):
        if noun == single or noun.endswith(" " + single):
            return noun[: -len(single)] + many
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("x", "sh", "ch", "s")) else "s")


def _x(thing: SceneObject) -> float:
    return (thing.box[0] + thing.box[2]) / 2


def single(objects: tuple[SceneObject, ...], size: tuple[int, int]) -> list[Phrase]:
    """Every phrase that means exactly one of `objects`. `size` is (width, height) of the image in pixels."""
    out: list[Phrase] = []
    margin = 0.05 * size[0]

    def add(text: str, form: str, thing: SceneObject) -> None:
        out.append(Phrase(text, form, "one", (thing.label,)))

    for thing in objects:
        for noun in sorted(thing.words):
            same = sorted((o for o in objects if means(noun, o)), key=_x)
            form = "name" if noun == thing.noun else "synonym"
            if len(same) == 1:
                add(noun, form, thing)
            elif noun == thing.noun:
                if thing is same[0] and _x(same[1]) - _x(thing) > margin:
                    add(f"leftmost {noun}", "relation", thing)
                if thing is same[-1] and _x(thing) - _x(same[-2]) > margin:
                    add(f"rightmost {noun}", "relation", thing)
            if noun != thing.noun:
                continue
            if thing.color != thing.noun and sum(clash(o.color, thing.color) for o in same) == 1:
                add(f"{thing.color} {noun}", "color", thing)
            for other in objects:
                if other in same or sum(means(other.noun, o) for o in objects) != 1:
                    continue
                for side, sign in (("left of", 1), ("right of", -1)):
                    there = [o for o in same if sign * (_x(other) - _x(o)) > margin]
                    unclear = [o for o in same if abs(_x(other) - _x(o)) <= margin]
                    if there == [thing] and not unclear:
                        add(f"{noun} {side} the {other.noun}", "relation", thing)
        if sum(clash(o.color, thing.color) for o in objects) == 1:
            add(f"{thing.color} object", "color", thing)
    out += _superlatives(objects, margin)
    return out


def _superlatives(objects: tuple[SceneObject, ...], margin: float) -> list[Phrase]:
    if len(objects) < 2:
        return []
    row, by_area = sorted(objects, key=_x), sorted(objects, key=lambda o: -o.area)
    found = []
    if _x(row[1]) - _x(row[0]) > margin:
        found.append(("leftmost object", row[0]))
    if _x(row[-1]) - _x(row[-2]) > margin:
        found.append(("rightmost object", row[-1]))
    if by_area[0].area > 1.4 * by_area[1].area:
        found.append(("biggest object", by_area[0]))
    if by_area[-2].area > 1.4 * by_area[-1].area:
        found.append(("smallest object", by_area[-1]))
    return [Phrase(text, "superlative", "one", (thing.label,)) for text, thing in found]


def groups(objects: tuple[SceneObject, ...]) -> list[Phrase]:
    """Phrases that mean all objects of a kind or colour, at least one each."""
    out = []
    for noun in sorted({w for o in objects for w in (o.noun, *o.synonyms)}):
        out.append((plural(noun), [o for o in objects if means(noun, o)]))
    for color in sorted({o.color for o in objects} - {"colorful"}):
        there = [o for o in objects if o.color == color]
        if not any(clash(o.color, color) for o in objects if o not in there):
            out.append((f"{color} objects", there))
    return [Phrase(text, "all", "all", tuple(o.label for o in there)) for text, there in out]


def affordances(objects: tuple[SceneObject, ...]) -> list[Phrase]:
    """Every affordance phrase, with the objects that serve (possibly none)."""
    return [Phrase(text, "affordance", "all", tuple(o.label for o in objects if o.noun in nouns))
            for text, nouns in AFFORDANCES.items()]  # fmt: skip


def absent(objects: tuple[SceneObject, ...], vocabulary: Vocabulary, rng: random.Random, quantity: str = "one") -> Phrase:
    """A phrase that means nothing in the scene: a missing noun (plain, placed or ranked), a wrong colour, a colour without its noun."""
    missing = [n for n in vocabulary.nouns if not any(means(n, o) or any(n.endswith(" " + w) for w in o.words) for o in objects)]
    noun, kind = rng.choice(missing), rng.random()
    things = [o for o in objects if o.color != o.noun]
    text = noun
    if quantity == "all":
        text = plural(noun)
    elif kind < 0.35 and things:
        thing = rng.choice(things)
        taken = [o.color for o in objects if means(thing.noun, o)]
        free = [c for c in vocabulary.colors if c != "colorful" and not any(clash(c, t) for t in taken)]
        text = f"{rng.choice(free)} {thing.noun}" if free else noun
    elif kind < 0.6 and things:
        color = rng.choice(things).color
        text = f"{color} {noun}" if color != "colorful" else noun
    elif kind < 0.72 and objects:
        # A relation or rank does not make a missing thing appear.
        other = rng.choice(objects).noun
        text = rng.choice((f"{noun} left of the {other}", f"{noun} right of the {other}", f"leftmost {noun}", f"rightmost {noun}"))
    return Phrase(text, "absent", quantity, ())

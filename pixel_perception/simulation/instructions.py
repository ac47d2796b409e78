"""What a person may say about a scene, with the objects, captions and word places that are right."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from pixel_perception.bundle import Templates
from pixel_perception.simulation.phrases import Phrase, Vocabulary, absent, affordances, groups, single
from pixel_perception.simulation.scene import SceneObject

ASK_ONE = ("{}", "the {}", "find the {}", "pick up the {}", "where is the {}?", "segment the {}", "show me the {}",
           "point to the {}", "hand me the {}", "can you see the {}?", "bring me the {}", "give me the {}")  # fmt: skip
ASK_ALL = ("all the {}", "find all the {}", "segment every one of the {}", "show me all {}", "where are the {}?", "all {}")
ASK_WISH = ("I need {}", "hand me {}", "find {}", "give me {}", "is there {}?", "point to {}", "what could I use: {}")
ASK_COUNT = ("how many {} are there?", "count the {}")
ASK_REGION, ASK_SCENE = Templates().caption_region, Templates().narrate  # what a bundle will ask with

FORMS = {"name": 5, "color": 5, "synonym": 4, "relation": 4, "superlative": 2}
"""How often a single object is meant by each form of phrase."""

FAMILIES = {"refer": 5, "several": 2, "all_of": 2, "reasoning": 2, "count": 1, "absent": 3, "region": 3, "dense": 1, "narrate": 1}
"""How many instructions of each family a scene is asked in evaluation, where it allows so many."""


@dataclass(frozen=True)
class Instruction:
    """One request with its ground truth. `targets` are in the order in which the text names them."""

    family: str
    form: str
    text: str
    targets: tuple[Phrase, ...] = ()
    region: int | None = None
    """Label of the object whose box is the region prompt."""
    caption: str = ""
    """Right text of a region caption, of dense captions or of a narration."""
    words: tuple[tuple[int, int, int], ...] = ()
    """(begin, end, label): characters of `caption` that name the object with this label."""


def instructions(objects: tuple[SceneObject, ...], size: tuple[int, int], rng: random.Random, vocabulary: Vocabulary,
                 counts: dict[str, int] | None = None) -> list[Instruction]:
    """Draw instructions about one view; the same `rng` state gives the same list.

    `size` is (width, height) in pixels. A family is left out where the scene has nothing to ask for it.
    """
    out: list[Instruction] = []
    for family, n in (counts or FAMILIES).items():
        for _ in range(n):
            item = one(family, objects, size, rng, vocabulary)
            if item is not None and item not in out:
                out.append(item)
    return out


def one(family: str, objects: tuple[SceneObject, ...], size: tuple[int, int], rng: random.Random,
        vocabulary: Vocabulary) -> Instruction | None:
    """Draw one instruction of a family, or None where the scene has nothing to ask for it."""
    if family == "refer":
        phrase = _by_form(single(objects, size), rng)
        return phrase and Instruction("refer", phrase.form, rng.choice(ASK_ONE).format(phrase.text), (phrase,))
    if family == "several":
        return _several(objects, size, rng, vocabulary)
    if family == "all_of":
        phrase = _large(groups(objects), rng)
        return phrase and Instruction("all_of", phrase.form, rng.choice(ASK_ALL).format(phrase.text), (phrase,))
    if family == "count":
        phrase = rng.choice(groups(objects)) if objects else None
        return phrase and Instruction("count", "count", rng.choice(ASK_COUNT).format(phrase.text), (phrase,))
    if family == "reasoning":
        there = [p for p in affordances(objects) if p.labels]
        if not there:
            return None
        phrase = rng.choice(there)
        return Instruction("reasoning", phrase.form, rng.choice(ASK_WISH).format(phrase.text), (phrase,))
    if family == "absent":
        return _absent(objects, rng, vocabulary)
    if family == "region":
        if not objects:
            return None
        thing = rng.choice(objects)
        return Instruction("region", "region", ASK_REGION, (), thing.label, thing.name, ((0, len(thing.name), thing.label),))
    if family == "dense":
        told = _narrate(objects)  # the task says it all: there is no text, and every object has a caption in a box of its own
        return told and replace(told, family="dense", form="dense", text="", targets=())
    if family == "narrate":
        return _narrate(objects)
    raise ValueError(f"family {family!r} is not one of {', '.join(FAMILIES)}")


def _by_form(phrases: list[Phrase], rng: random.Random) -> Phrase | None:
    # First the form, then the phrase: relations outnumber names many times and would drown them.
    forms = sorted({p.form for p in phrases})
    if not forms:
        return None
    form = rng.choices(forms, [FORMS[f] for f in forms])[0]
    return rng.choice([p for p in phrases if p.form == form])


def _large(phrases: list[Phrase], rng: random.Random) -> Phrase | None:
    several = [p for p in phrases if len(p.labels) > 1]
    return rng.choice(several) if several else rng.choice(phrases) if phrases else None


def _several(objects, size, rng, vocabulary) -> Instruction | None:
    phrases: list[Phrase] = []
    taken: set[int] = set()
    candidates = [p for p in single(objects, size) if p.form != "relation"]
    rng.shuffle(candidates)
    for phrase in candidates:
        if phrase.labels[0] not in taken and len(phrases) < 3:
            phrases.append(phrase)
            taken.add(phrase.labels[0])
    if len(phrases) < 2:
        return None
    if len(phrases) == 3 and rng.random() < 0.5:
        phrases.pop()
    if rng.random() < 0.2:
        phrases[rng.randrange(len(phrases))] = absent(objects, vocabulary, rng)
    names = [f"the {p.text}" for p in phrases]
    listed = f"{', '.join(names[:-1])} and {names[-1]}"
    return Instruction("several", "list", rng.choice(("{}", "find {}", "segment {}", "show me {}", "I need {}")).format(listed),
                       tuple(phrases))


def _absent(objects, rng, vocabulary) -> Instruction:
    kind = rng.random()
    if kind < 0.2:
        none = [p for p in affordances(objects) if not p.labels]
        if none:
            phrase = rng.choice(none)
            return Instruction("absent", "affordance", rng.choice(ASK_WISH).format(phrase.text), (phrase,))
    if kind < 0.35:
        phrase = absent(objects, vocabulary, rng, "all")
        return Instruction("absent", "all", rng.choice(ASK_ALL).format(phrase.text), (phrase,))
    phrase = absent(objects, vocabulary, rng)
    return Instruction("absent", "one", rng.choice(ASK_ONE).format(phrase.text), (phrase,))


def _narrate(objects) -> Instruction | None:
    row = sorted(objects, key=lambda o: (o.box[0] + o.box[2]) / 2)[:8]
    if not row:
        return None
    caption, words, targets = "", [], []
    for thing in row:
        caption += ", " if caption else ""
        words.append((len(caption), len(caption) + len(thing.name), thing.label))
        targets.append(Phrase(thing.name, "narrate", "one", (thing.label,)))
        caption += thing.name
    return Instruction("narrate", "narrate", ASK_SCENE, tuple(targets), None, caption, tuple(words))

"""From facts to lessons: every answer has a slot for each target, in PixelLM's patterns."""

import random
from pathlib import Path

import pytest

from pixel_perception.training.tasks.phrasing import ONE, converse, deal, join
from pixel_perception.training.tasks.registry import DATA_SETS, find
from pixel_perception.training.tasks.sample import SLOT, Round, Sample, Source, Target


def sample(**facts):
    return Sample(Path("x.jpg"), (4, 4), Source("x.json", ""), **facts)


@pytest.mark.parametrize("name", [n for n in DATA_SETS if not n.startswith("multi_") or n == "multi_refcoco"])
def test_every_data_set_becomes_lessons(make, name):
    for task in find(name).open_all(make(name)):
        for given in task:
            for seed in range(30):
                for asked in converse(given, random.Random(seed)):
                    assert asked.question and asked.answer.count(SLOT) == len(asked.targets)
                    assert "{}" not in asked.question and "{name" not in asked.answer
                assert converse(given, random.Random(seed)) == converse(given, random.Random(seed))


def test_up_to_three_questions_about_three_targets():
    targets = [Target((f"thing {i}",)) for i in range(20)]
    for seed in range(50):
        groups = deal(targets, random.Random(seed), 3, 3)
        assert [len(g) for g in groups] == [3, 3, 3] and len({t.names for g in groups for t in g}) == 9
    assert sorted(len(g) for g in deal(targets[:4], random.Random(0), 3, 3)) == [1, 1, 2]
    assert len(deal(targets[:2], random.Random(0), 3, 3)) == 2 and deal([], random.Random(0), 3, 3) == []


def test_words():
    said = {converse(sample(targets=(Target(("The Mug",)),)), random.Random(s))[0] for s in range(80)}
    assert {r.answer for r in said} == {p.replace("{}", SLOT) for p in ONE}
    assert {r.question for r in said} >= {"Can you segment the the mug in this image?", "Please segment the the mug in this image."}
    assert join(["a"]) == "a" and join(["a", "b"]) == "a and b" and join(["a", "b", "c"]) == "a, b and c"


def test_the_data_sets_own_words_stay():
    mug, bowl = Target(("the mug", "mug")), Target(("bowl",))
    written = Round("What holds tea?", f"Tea in {SLOT}.", (mug,))
    (asked,) = converse(sample(rounds=(written,)), random.Random(0))
    assert asked.answer == written.answer and asked.question.startswith("What holds tea? Please ")
    answers = {converse(sample(rounds=(Round("What?", "", (mug, bowl)),)), random.Random(s))[0].answer for s in range(200)}
    assert all("bowl" in a and "mug" in a for a in answers)  # a question that names nothing is answered with names
    assert converse(sample(rounds=(Round("Hello?", "Hello."),), chained=True), random.Random(0)) == (Round("Hello?", "Hello."),)


def test_explanations():
    asked = Round("What holds tea?", "", (Target(()),), "A mug does.")
    lessons = [converse(sample(rounds=(asked,)), random.Random(s))[0] for s in range(300)]
    alone = [r for r in lessons if r.answer == "A mug does."]
    behind = [r for r in lessons if r.answer.endswith("A mug does.") and SLOT in r.answer]
    assert 10 < len(alone) < 60 and not alone[0].targets
    assert 90 < len(behind) < 180 and all("expla" in r.question for r in behind)

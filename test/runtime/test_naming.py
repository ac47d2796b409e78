"""What targets are called, in sentences of every kind that published answers have."""

import pytest

from pixel_perception.runtime.naming import name_target
from pixel_perception.runtime.text import Stream
from pixel_perception.training.tasks import phrasing


def names(sentence, about="the mug and the bowl"):
    """Labels of the groups ({seg}) of a sentence, streamed as the runtime does; spans must hold them."""
    stream, found = Stream(), []
    parts = sentence.split("{seg}")
    for part in parts[:-1]:
        stream.add(part.strip().encode())
        stream.interrupt()
        label, (begin, end) = name_target(stream.text, stream.interruptions, about)
        assert stream.text.encode()[begin:end].decode() in (label, "")
        found.append((label, begin < end))
    return found


@pytest.mark.parametrize(
    ("sentence", "wanted"),
    [
        ("mug is {seg}, bowl is {seg} and fork is {seg}.", ["mug", "bowl", "fork"]),
        ("Sure, the mug, the bowl and a fork are {seg}, {seg} and {seg}, separately.", ["the mug", "the bowl", "a fork"]),
        ("The segmentation result of mug is {seg} and The segmentation result of café is {seg}.", ["mug", "café"]),
        ("You can cut the bread with the knife {seg} on the cutting board {seg}.", ["the knife", "the cutting board"]),
        ("Take a red mug with a handle {seg}, or the lid of the jar {seg}.", ["a red mug with a handle", "the lid of the jar"]),
        ("The two cups are {seg} and {seg}. The salt and pepper shaker is {seg}.",
         ["The two cups", "The two cups", "The salt and pepper shaker"]),
        ("mug {seg}, red bowl {seg} and fork {seg}.", ["mug", "red bowl", "fork"]),
    ],
)  # fmt: skip
def test_names_stand_in_the_sentence(sentence, wanted):
    assert names(sentence) == [(name, True) for name in wanted]


def test_without_a_name_the_question_names_targets():
    assert names("Sure, they are {seg} and {seg}.") == [("the mug", False), ("the bowl", False)]
    assert names("{seg}.", "The  red mug.") == [("The red mug", False)]
    assert names("It is {seg}.", "What holds salt and pepper?") == [("What holds salt and pepper", False)]
    assert names("{seg}", "") == [("", False)]


@pytest.mark.parametrize("pattern", [*phrasing.ONE, *phrasing.EACH, *phrasing.TOGETHER])
def test_every_pattern_of_training_gives_the_name(pattern):
    answer = pattern.replace("{}", "{seg}").replace("{name}", "blue cup").replace("{names}", "blue cup")
    assert [name for name, _ in names(answer, "blue cup")] == ["blue cup"]

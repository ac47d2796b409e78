"""What is asked of every data set, from folders in its real format."""

import pytest

from pixel_perception.evaluation.requests import ABSENT, KINDS, MAKERS, requests
from pixel_perception.training.tasks.registry import DATA_SETS, open_task


def asked(make, name, split="train", layout=None):
    return requests(name, open_task(name, make(layout or name), split)[0], 0, tuple(MAKERS))


def test_every_data_set_but_conversations_can_be_evaluated():
    assert set(DATA_SETS) - set(KINDS) == {"llava_instruct"}
    assert {kind for kinds in KINDS.values() for kind in kinds} == set(MAKERS)


def test_every_sentence_is_asked_by_itself(make):
    found = asked(make, "refcoco")
    assert [(r.kind, r.text) for r in found] == [
        ("refer", text) for text in ("the red mug", "left cup", "the bowl", "big bowl on the right", "right one")]  # fmt: skip
    assert [r.targets[0].box for r in found] == [(10, 10, 30, 30)] * 2 + [(34, 20, 60, 44)] * 3


def test_refcocog_also_asks_for_captions_of_its_boxes(make):
    found = [r for r in asked(make, "refcocog") if r.kind == "region"]
    assert [r.box for r in found] == [(10, 10, 30, 30), (34, 20, 60, 44)]
    assert [[c.text for c in r.captions] for r in found] == [["the red mug", "left cup"],
                                                             ["the bowl", "big bowl on the right", "right one"]]  # fmt: skip


def test_lists_are_the_chunks(make):
    (request,) = asked(make, "multi_refcoco")
    assert request.text == "the red mug, left cup, the bowl, big bowl on the right and right one"
    assert request.names == ("the red mug", "left cup", "the bowl", "big bowl on the right", "right one")
    assert [t.box[0] for t in request.targets] == [10, 10, 34, 34, 34]


def test_muse_and_reason_seg(make):
    assert [(r.text, len(r.targets)) for r in asked(make, "muse")] == [("What holds tea and soup?", 2), ("And tea?", 1)]
    (sentence,) = asked(make, "reason_seg")
    assert sentence.text == "what holds tea?" and not sentence.names and sentence.targets[0].ignore


def test_a_phrase_of_reason_seg_is_told_from_a_question(make):
    (phrase,) = asked(make, "reason_seg", "val")
    assert phrase.text == "the tea holder" and phrase.names == ("the tea holder",)


def test_classes_are_united_and_absent_ones_are_asked_for(make):
    sample = open_task("ade20k", make("ade20k"), "train")[0]
    found = requests("ade20k", sample, 0, ("all",))
    there, gone = [r for r in found if r.targets], [r for r in found if not r.targets]
    assert [r.text for r in there] == ["flag", "sky", "wall"] and len(gone) == ABSENT
    assert not {r.text for r in gone} & {"flag", "sky", "wall"}
    assert requests("ade20k", sample, 0, ("all",)) == found != requests("ade20k", sample, 1, ("all",))


def test_a_phrase_has_all_its_boxes(make):
    assert [(r.text, [t.box for t in r.targets]) for r in asked(make, "flickr30k", layout="flickr30k")] == [
        ("Two men", [(10, 10, 30, 30)]), ("a table", [(34, 20, 60, 44)])]  # fmt: skip


def test_regions_and_dense_captions(make):
    kinds = [r.kind for r in asked(make, "visual_genome")]
    assert kinds == ["region", "region", "dense"]


def test_captions_and_narratives(make):
    (caption,) = asked(make, "coco_captions")
    assert [c.text for c in caption.captions] == ["A mug.", "A red mug on a table."]
    (whole,) = asked(make, "localized_narratives")
    assert whole.text == "There is a red mug. It is big." and whole.captions[0].words


@pytest.mark.parametrize("name", ["refcoco", "muse", "coco_captions"])
def test_only_the_kinds_that_are_wanted(make, name):
    assert requests(name, open_task(name, make(name), "train")[0], 0, ("dense",)) == []

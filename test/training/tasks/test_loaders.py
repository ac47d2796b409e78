"""Every loader on a small well-formed folder in its data set's real format."""

import numpy as np
import pytest

from pixel_perception.training.tasks import localized_narratives as narratives
from pixel_perception.training.tasks import multi_referring
from pixel_perception.training.tasks.registry import DATA_SETS, find, open_task
from pixel_perception.training.tasks.rle import area, box, to_bits, union


def words(caption):
    return {caption.text.encode()[w.begin : w.end].decode(): w.box for w in caption.words}


@pytest.mark.parametrize("name", [n for n in DATA_SETS if not n.startswith("multi_") or n == "multi_refcoco"])
def test_a_well_formed_folder_is_sound(make, name):
    tasks = find(name).open_all(make(name))
    assert "train" in {t.split for t in tasks}
    for task in tasks:
        assert not list(task.problems())
        for sample in task:
            assert sample.image.is_file() and sample.size == (64, 48) and sample.source.file
            for target in (*sample.targets, *(t for r in sample.rounds for t in r.targets)):
                assert target.mask is None or target.mask["size"] == [48, 64]
                assert target.box is None or 0 <= target.box[0] < target.box[2] <= 64


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog", "refclef"])
def test_references(make, name):
    task = open_task(name, make(name))
    assert len(task) == 2
    first = task[0]
    assert [t.names for t in first.targets] == [("the red mug", "left cup"), ("the bowl", "big bowl on the right", "right one")]
    assert first.targets[1].box == (34, 20, 60, 44)
    assert area(first.targets[1].mask) == 26 * 24
    assert "references[0]" in first.source.record
    if name == "refclef":  # a list of run lengths, column by column
        assert to_bits(first.targets[0].mask)[10:30, 0].all() and area(first.targets[0].mask) == 20
    else:
        assert len(open_task(name, task.folder.parent.parent, "testA" if name != "refcocog" else "test")) == 1


@pytest.mark.parametrize("layout", ["mdetr", "uninext", "seqtr"])
def test_references_as_json(make, layout):
    task = open_task("refcoco", make(layout))
    (target,) = task[0].targets
    assert target.names == ("the red mug", "left mug")
    assert target.box == (10, 10, 30, 30) and area(target.mask) == 400
    assert len(open_task("multi_refcoco_released", task.folder if task.folder.is_dir() else task.folder.parent)[0].rounds) == 1


@pytest.mark.parametrize(("count", "sizes", "released"), [
    (0, [], []), (2, [], [2]), (3, [3], [3]), (6, [6], [6]), (7, [4, 3], [6, 1]), (11, [6, 5], [6, 5]), (13, [6, 4, 3], [6, 5, 2]),
    (16, [6, 5, 5], [6, 5, 4, 1]), (17, [6, 5, 3, 3], [6, 5, 4, 2]),
])  # fmt: skip
def test_chunks(count, sizes, released):
    assert multi_referring.chunks(count) == sizes
    assert multi_referring.chunks(count, released=True) == released


def test_chunks_are_of_three_to_six():
    for count in range(3, 200):
        sizes = multi_referring.chunks(count)
        assert sum(sizes) == count and all(3 <= s <= 6 for s in sizes)


def test_multi_referring(make):
    folder = make("multi_refcoco")
    (sample,) = open_task("multi_refcoco", folder)  # the image with one sentence is left out
    (asked,) = sample.rounds
    assert [t.names[0] for t in asked.targets] == ["the red mug", "left cup", "the bowl", "big bowl on the right", "right one"]
    assert len(open_task("multi_refcoco_released", folder)) == 2


def test_muse(make):
    first, second = open_task("muse", make("muse"))
    assert [len(r.targets) for r in first.rounds] == [2, 1]
    assert first.rounds[0].answer == "Tea in {seg}, soup in {seg}." and first.rounds[1].answer == ""
    assert first.rounds[0].targets[0].names == ("the red mug", "mug")
    assert second.image.parent.name == "val2017" and second.targets[0].names[0] == "the red mug" and not second.rounds


def test_reason_seg(make):
    folder = make("reason_seg")
    (sample,) = open_task("reason_seg", folder)
    (asked,) = sample.rounds
    target = asked.targets[0]
    assert asked.question == "what holds tea?" and asked.explanation == "A mug holds drinks."
    assert to_bits(target.mask)[12, 12] and not to_bits(target.mask)[17, 17] and to_bits(target.ignore)[17, 17]
    assert open_task("reason_seg", folder, "val")[0].targets[0].names == ("the tea holder",)
    path = folder / "train" / "one.json"
    path.write_bytes(path.read_bytes().replace(b"what holds tea?", "what holds th\xe9?".encode("cp1252")))
    assert open_task("reason_seg", folder)[0].rounds[0].question == "what holds thé?"


def test_label_maps(make):
    (sample,) = open_task("ade20k", make("ade20k"))
    assert [t.names for t in sample.targets] == [("wall",), ("sky",), ("flag",)]
    assert sample.targets[0].box == (16, 0, 32, 48)
    (sample,) = open_task("coco_stuff", make("coco_stuff"))
    assert [t.names for t in sample.targets] == [("person",), ("wood",)]  # 95 is "building-other", 255 unlabeled


def test_label_maps_with_names_of_their_own(make):
    folder = make("ade20k")
    rows = "".join(f"{i + 1}\t0\t1\t1\tclass {i}, other\n" for i in range(150))
    (folder / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n" + rows)
    assert open_task("ade20k", folder)[0].targets[0].names == ("class 0",)
    folder = make("coco_stuff")
    (folder / "labels.txt").write_text("0: unlabeled\n" + "".join(f"{i + 1}: thing {i}\n" for i in range(182)))
    assert [t.names for t in open_task("coco_stuff", folder)[0].targets] == [("thing 0",), ("thing 95",), ("thing 181",)]


def test_parts(make):
    (sample,) = open_task("paco", make("paco"))
    assert [t.names for t in sample.targets] == [("trash can",), ("mug handle", "the handle of the mug")]
    assert area(sample.targets[1].mask) == 20
    (sample,) = open_task("pascal_part", make("pascal_part"))
    assert sample.targets[0].names == ("dog ear", "the ear of the dog")


def test_llava(make):
    (sample,) = open_task("llava_instruct", make("llava_instruct"))
    assert sample.chained and [(r.question, r.answer) for r in sample.rounds] == [("What is here?", "A mug."), ("Its colour?", "Red.")]


def test_narrative_whole(make):
    (sample,) = open_task("localized_narratives", make("localized_narratives"))
    (caption,) = sample.captions
    assert len(caption.utterances) == 4 and caption.utterances[0] == (8, 12, 16, 12) and caption.utterances[3] == (32, 24, 32, 36)
    # Eight words over four utterances by position: the first half of "a red mug" lies at what was said before.
    assert len(caption.words) == 8 and caption.words[0].box == (8, 12, 16, 12) and caption.words[-1].box == (32, 24, 32, 36)


def test_narrative_by_sentences(make):
    (sample,) = open_task("localized_narratives_sentences", make("localized_narratives_sentences"))
    first, second = sample.captions
    assert (first.text, second.text) == ("There is a red mug.", "It is big.")
    assert words(first)["mug"] == words(first)["a"] == (16, 12, 24, 12)
    assert words(second) == {"It": (24, 12, 32, 24), "is": (24, 12, 32, 24), "big": (32, 24, 32, 36)}


def test_a_word_that_was_not_said_has_no_place():
    place = (0.0, 0.0, 4.0, 4.0)
    placed = narratives.align("Über dem blue table", [("über dem", place), ("table", place)])
    assert [("Über dem blue table".encode()[w.begin : w.end].decode()) for w in placed] == ["Über", "dem", "table"]


def test_by_position_follows_the_released_code():
    def reference(tokens, utterances):  # utterance k at k / K; tokens rescaled to lie between the first and the last
        at = [(1 + (utterances - 1) * (j + 1) / tokens) / utterances for j in range(tokens)]
        return [min(range(utterances), key=lambda k: (round(abs(a - (k + 1) / utterances), 9), k)) for a in at]

    for tokens, utterances in ((5, 3), (9, 4), (2, 7), (1, 1), (20, 6)):
        assert narratives.by_position(tokens, utterances) == reference(tokens, utterances)
    assert narratives.by_position(4, 0) == [] == narratives.by_position(0, 4)


def test_the_mouse_between_and_beyond_its_points():
    times, values = np.array([1.0, 2.0, 4.0]), np.array([0.0, 1.0, 5.0])
    assert narratives._interpolate(np.array([0.5, 1.5, 3.0, 5.0]), times, values).tolist() == [-0.5, 0.5, 3.0, 7.0]


def test_captions_and_regions(make):
    assert [c.text for c in open_task("coco_captions", make("coco_captions"))[0].captions] == ["A mug.", "A red mug on a table."]
    regions = open_task("visual_genome", make("visual_genome"))[0].captions
    assert [(r.text, r.box) for r in regions] == [("a red mug", (10, 10, 30, 30)), ("bowl of soup", (34, 20, 60, 44))]


def test_phrases(make):
    for name in ("flickr30k", "goldg"):
        (sample,) = open_task(name, make(name))
        assert [(t.names, t.box) for t in sample.targets] == [(("Two men",), (10, 10, 30, 30)), (("a table",), (34, 20, 60, 44))]
        assert sample.captions[0].text == "Two men beside a table."


def test_entities(make):
    (sample,) = open_task("flickr30k", make("entities"))
    assert [(t.names, t.box) for t in sample.targets] == [(("Two men",), (0, 0, 30, 40)), (("a table",), (30, 20, 64, 48))]
    (caption,) = sample.captions
    assert caption.text == "Two men beside a table in a café ." and list(words(caption)) == ["Two men", "a table"]


def test_masks_agree_with_each_other(make):
    mask = open_task("paco", make("paco"))[0].targets[0].mask
    assert union([mask, mask]) == mask and box(mask) == (10, 10, 30, 30)

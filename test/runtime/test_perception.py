import dataclasses
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pixel_perception.bundle import Bundle, file_digest, write_manifest
from pixel_perception.errors import PerceptionError
from pixel_perception.perception import Perception
from pixel_perception.types import Query, Task

MUGS, BANANA = ((70, 100, 170, 200), (100, 340, 190, 430)), (420, 250, 560, 370)


def _drawn(*boxes):
    out = np.zeros((480, 640), bool)
    for x0, y0, x1, y1 in boxes:
        out[y0:y1, x0:x1] = True
    return out


def _iou(mask, *boxes):
    full, expected = mask.full(640, 480), _drawn(*boxes)
    return np.count_nonzero(full & expected) / np.count_nonzero(full | expected)


def _same(a, b):
    """Whether two results are equal in all but their timings."""
    def plain(result):
        instances = [(i.label, i.score, i.box, i.mask.roi, i.mask.bits.tobytes(), i.mask_score, i.track_id) for i in result.instances]
        return result.text, result.targets, instances, result.words, result.regions, result.finish_reason, result.digest

    return plain(a) == plain(b)


@pytest.mark.parametrize(
    ("text", "answer", "instances"),
    [
        ("The red mug!", "red mug", [("red mug", MUGS)]),
        ("find the banana", "yellow banana", [("yellow banana", (BANANA,))]),
        ("the mug and the banana", "red mug, yellow banana", [("red mug", MUGS), ("yellow banana", (BANANA,))]),
        ("all mugs", "red mug", [("red mug", MUGS[:1]), ("red mug", MUGS[1:])]),
        ("all bananas", "yellow banana", [("yellow banana", (BANANA,))]),
    ],
)
def test_answers(perception, image, text, answer, instances):
    result = perception.ask(image, Query(text, id="q7"))
    assert (result.text, result.finish_reason, result.query_id) == (answer, "stop", "q7")
    assert result.image_size == (640, 480) and result.digest == perception.info.digest
    assert [i.label for i in result.instances] == [label for label, _ in instances]
    for instance, (_, boxes) in zip(result.instances, instances, strict=True):
        assert _iou(instance.mask, *boxes) > 0.85
        x0, y0, x1, y1 = (f(b[k] for b in boxes) for k, f in enumerate((min, min, max, max)))
        assert np.allclose(instance.box, (x0, y0, x1, y1), atol=6)
        assert 0.5 < instance.score <= 1 and 0.5 < instance.mask_score <= 1
        assert result.targets[instance.target].label == instance.label
        assert result.text.encode()[slice(*instance.span)].decode() == instance.label
    assert [i.track_id for i in result.instances] == list(range(1, len(instances) + 1))


def test_an_absent_target_is_named_and_has_no_instance(perception, image):
    result = perception.ask(image, Query("the unicorn"))
    assert len(result.targets) == 1 and not result.targets[0].present and result.targets[0].score < 0.1
    assert result.instances == () and result.standing is not None
    # Someone who wants to see what it would have been can lower the threshold.
    assert len(perception.ask(image, Query("the unicorn", score_threshold=0.0)).instances) == 1
    assert perception.ask(image, Query("the red mug", score_threshold=1.0)).instances == ()


def test_max_instances_keeps_the_best_masks(perception, image):
    everything = perception.ask(image, Query("all mugs")).instances
    result = perception.ask(image, Query("all mugs", max_instances=1))
    assert len(result.instances) == 1
    assert result.instances[0].mask_score == max(i.mask_score for i in everything)
    assert len(perception.follow(image, result.standing).instances) == 1


@pytest.mark.parametrize("query", [Query("the mug and the banana"), Query("all mugs"), Query("mugs forever"), Query(boxes=(BANANA,)),
                                   Query(boxes=(BANANA, MUGS[0])), Query(task=Task.NARRATE), Query(task=Task.CAPTION_DENSE)])  # fmt: skip
def test_what_is_streamed_is_the_result(perception, image, query):
    parts = []
    result = perception.ask(image, query, parts.append)
    assert "".join(p.text for p in parts) == result.text
    assert [p.instance for p in parts if p.kind == "instance"] == list(result.instances)
    assert [p.region for p in parts if p.kind == "region"] == list(result.regions)
    assert _same(result, perception.ask(image, query))


def test_an_instance_comes_before_the_words_after_it(perception, image):
    kinds = []
    perception.ask(image, Query("the mug and the banana"), lambda p: kinds.append(p.text or p.kind))
    assert kinds.index("instance") < kinds.index(",")


def test_cancel_keeps_what_there_is(perception, image):
    cancel, parts = threading.Event(), []

    def note(part):
        parts.append(part)
        if part.kind == "instance":
            cancel.set()

    result = perception.ask(image, Query("the mug and the banana"), note, cancel)
    assert (result.finish_reason, result.text, len(result.instances)) == ("cancelled", "red mug", 1)
    assert result.standing is not None and len(result.standing.targets) == 1
    assert parts[-1].kind == "instance"
    result = perception.ask(image, Query("the mug"), cancel=cancel)
    assert (result.finish_reason, result.text, result.instances, result.standing) == ("cancelled", "", (), None)


def test_several_queries_in_one_go_are_answered_as_alone(perception, image):
    queries = [Query("the mug and the banana", id="a"), Query(boxes=(BANANA,), id="b"), Query("all mugs", id="c"),
               Query("mugs forever", id="d", max_new_tokens=30), Query(task=Task.CAPTION_DENSE, id="e")]  # fmt: skip
    heard = [[] for _ in queries]
    results = perception.ask_all(image, queries, on_partial=lambda index, partial: heard[index].append(partial))
    assert [r.query_id for r in results] == list("abcde")
    for query, result, partials in zip(queries, results, heard, strict=True):
        alone = perception.ask(image, query)
        assert (result.text, result.finish_reason) == (alone.text, alone.finish_reason)
        assert [(i.label, i.track_id) for i in result.instances] == [(i.label, i.track_id) for i in alone.instances]
        for mine, other in zip(result.instances, alone.instances, strict=True):
            assert np.allclose(mine.box, other.box, atol=2) and mine.score == pytest.approx(other.score, abs=0.02)
        assert "".join(p.text for p in partials if p.kind == "text") == result.text
        assert [p.instance for p in partials if p.kind == "instance"] == list(result.instances)
    assert perception.ask_all(image, []) == []


def test_length_ends_an_answer(perception, image):
    result = perception.ask(image, Query("mugs forever", max_new_tokens=9))
    assert result.finish_reason == "length" and len(result.targets) == 1


def test_same_query_same_frame_same_answer(tiny, perception, image):
    encoded = perception.encode(image)
    for query in (Query("the mug and the banana"), Query("all mugs"), Query(task=Task.NARRATE), Query(task=Task.CAPTION_DENSE)):
        first = perception.ask(encoded, query)
        assert _same(first, perception.ask(encoded, query)) and _same(first, perception.ask(image, query))
        assert _same(first, Perception.open(tiny.folder, threads=1).ask(image, query))


def test_a_frame_is_read_once(perception, image):
    encoded = perception.encode(image)
    perception.ask(encoded, Query("the mug"))
    prefix = perception.prefix(encoded)
    perception.ask(encoded, Query("the banana"))
    assert perception.prefix(encoded) is prefix
    # begin, three tokens of the whole image, three of each of three proposals
    assert prefix.lengths == (1 + 3 + 9,)


def test_threads_do_not_disturb_each_other(perception, image):
    queries = [Query("the mug and the banana"), Query("all mugs"), Query(boxes=(BANANA, MUGS[0]))] * 4
    expected = [perception.ask(image, q) for q in queries[:3]] * 4
    encoded = perception.encode(image)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda q: perception.ask(encoded, q), queries))
    assert all(_same(a, b) for a, b in zip(found, expected, strict=True))


def test_captions_of_boxes_and_points(perception, image):
    result = perception.ask(image, Query(boxes=(MUGS[0],)))
    assert result.text == "red mug" and [r.caption for r in result.regions] == ["red mug"]
    assert result.regions[0].box == MUGS[0] and 0 < result.regions[0].score <= 1
    assert result.standing is None and result.instances == ()
    result = perception.ask(image, Query(points=((110, 150), (630, 5))))
    x0, y0, x1, y1 = result.regions[0].box
    assert x0 < 110 < x1 and y0 < 150 < y1 and x1 - x0 < 200
    assert result.regions[1].box == (580.0, 0.0, 640.0, 60.0)
    assert result.text == "red mug, red mug"


def test_dense_captions_go_from_left_to_right(perception, image):
    result = perception.ask(image, Query(task=Task.CAPTION_DENSE))
    centres = [(r.box[0] + r.box[2]) / 2 for r in result.regions]
    assert len(centres) == 3 and centres == sorted(centres)
    assert result.text == ", ".join(r.caption for r in result.regions)
    empty = perception.ask(np.full((480, 640, 3), 90, np.uint8), Query(task=Task.CAPTION_DENSE))
    assert (empty.regions, empty.text, empty.finish_reason) == ((), "", "stop")


def test_words_have_places_in_the_image(perception, image):
    result = perception.ask(image, Query(task=Task.NARRATE))
    text = result.text.encode()
    assert [text[w.begin : w.end] for w in result.words] == [b"red", b"mug", b"yellow", b"banana"]
    for word in result.words:
        assert 0 <= word.box[0] <= word.box[2] <= 640 and 0 <= word.box[1] <= word.box[3] <= 480
    several = perception.ask(image, Query(boxes=(BANANA, MUGS[0])))
    assert [several.text.encode()[w.begin : w.end] for w in several.words] == [b"red", b"mug"] * 2
    assert [w.begin for w in several.words] == [0, 4, 9, 13]


def test_follow_keeps_ids_while_things_move(perception, moved):
    result = perception.ask(moved(), Query("all mugs"))
    before = {i.track_id: i.box for i in result.instances}
    standing = result.standing
    for step in range(1, 5):
        result = perception.follow(moved((12 * step, -8 * step)), standing)
        standing = result.standing
        assert result.finish_reason == "followed" and result.text == "red mug"
        assert sorted(i.track_id for i in result.instances) == [1, 2]
        for instance in result.instances:
            expected = np.add(before[instance.track_id], (12 * step, -8 * step) * 2)
            assert np.allclose(instance.box, expected, atol=8)
    assert standing.queries is result.standing.queries


def test_follow_says_what_is_gone_and_finds_it_again(perception, image):
    standing = perception.ask(image, Query("the mug and the banana")).standing
    gone = perception.follow(np.full_like(image, 90), standing)
    assert [t.present for t in gone.targets] == [False, False] and gone.instances == ()
    back = perception.follow(image, gone.standing)
    assert [t.present for t in back.targets] == [True, True]
    assert [i.track_id for i in back.instances] == [1, 2]


def test_follow_without_motion_equals_the_answer(perception, image):
    for text in ("the mug and the banana", "all mugs"):
        asked = perception.ask(image, Query(text))
        followed = perception.follow(image, asked.standing)
        for a, b in zip(asked.instances, followed.instances, strict=True):
            assert a.box == b.box and np.array_equal(a.mask.bits, b.mask.bits) and a.track_id == b.track_id


def test_follow_refuses_queries_of_another_bundle(perception, image):
    standing = dataclasses.replace(perception.ask(image, Query("the mug")).standing, digest="0" * 64)
    with pytest.raises(PerceptionError, match="standing: expected .* found one of 000000000000"):
        perception.follow(image, standing)


@pytest.mark.parametrize("size", [(1, 1), (3, 700), (700, 3), (1920, 1080), (97, 64)])
def test_any_image_size(perception, size):
    image = np.full((size[1], size[0], 3), (200, 30, 30), np.uint8)
    result = perception.ask(image, Query("all mugs", score_threshold=0.0))
    assert result.image_size == size
    for instance in result.instances:
        x, y, w, h = instance.mask.roi
        assert x >= 0 and y >= 0 and x + w <= size[0] and y + h <= size[1]
    perception.follow(image, result.standing)
    perception.ask(image, Query(points=((0, 0),)))


def test_frames_of_several_cameras_in_one_batch(perception, image):
    other = np.ascontiguousarray(image[::-1, : image.shape[1] // 2])
    query = Query("all mugs")
    for frame, encoded in zip((image, other), perception.encode_all([image, other]), strict=True):
        alone, together = perception.ask(frame, query), perception.ask(encoded, query)
        assert together.image_size == (frame.shape[1], frame.shape[0]) and together.text == alone.text
        assert [i.mask.roi for i in together.instances] == [i.mask.roi for i in alone.instances]
    assert perception.encode_all([]) == []
    with pytest.raises(PerceptionError, match="uint8"):
        perception.encode_all([image, image.astype(np.float32)])


def test_bad_input_and_then_a_good_request(perception, image):
    for frame, query, code in ((image, Query(""), "INVALID_QUERY"), (image[:, :, :2], Query("mug"), "INVALID_IMAGE"),
                               (image[:0], Query("mug"), "INVALID_IMAGE"), (image, Query("x" * 10_000), "INVALID_QUERY"),
                               (image, Query(boxes=((900, 900, 950, 950),)), "INVALID_QUERY")):  # fmt: skip
        with pytest.raises(PerceptionError) as caught:
            perception.ask(frame, query)
        assert caught.value.code == code
    assert perception.ask(image, Query("the mug")).text == "red mug"


def test_open_says_what_is_wrong(tiny, tmp_path):
    with pytest.raises(PerceptionError, match="backend: expected one of auto, onnxruntime, .*, found .abacus."):
        Perception.open(tiny.folder, backend="abacus")
    with pytest.raises(PerceptionError, match="threads: expected 1 or more"):
        Perception.open(tiny.folder, threads=0)
    with pytest.raises(PerceptionError, match="manifest.json: expected a bundle's manifest, found no such file"):
        Perception.open(tmp_path)


def test_a_graph_in_the_place_of_another(tiny, tmp_path):
    """Digests that match do not make graphs that fit."""
    folder = shutil.copytree(tiny.folder, tmp_path / "copy")
    shutil.copy(folder / "proposals.onnx", folder / "pixel_decoder.onnx")
    manifest = Bundle.open(tiny.folder).manifest
    wrong = dataclasses.replace(manifest.graphs["pixel_decoder"], sha256=file_digest(folder / "pixel_decoder.onnx"))
    write_manifest(folder, dataclasses.replace(manifest, graphs=manifest.graphs | {"pixel_decoder": wrong}))
    with pytest.raises(PerceptionError, match=r"pixel_decoder.onnx: expected inputs .*queries.* found"):
        Perception.open(folder)

"""Damaged folders: the complaint names the file, the record and the field, before anything is trained."""

import json
import pickle
import subprocess
import sys

import pytest
from PIL import Image

from pixel_perception.training.tasks import refcoco
from pixel_perception.training.tasks.registry import find, open_task
from pixel_perception.training.tasks.sample import EmptySplit, TaskError


def complaint(name, folder, split="train"):
    """The one problem of a folder, found while opening it or while reading its records."""
    try:
        task = open_task(name, folder, split)
    except TaskError as error:
        return error
    problems = [error for _, error in task.problems()]
    assert len(problems) == 1, problems
    with pytest.raises(TaskError, match="expected|missing"):
        task.sound()
    return problems[0]


def at(*path):
    """A function that sets (or with ... deletes) the value at a path of keys: at("images", 0, "width", 3)."""

    def change(value):
        *keys, last, new = path
        for key in keys:
            value = value[key]
        if new is ...:
            del value[last]
        else:
            value[last] = new

    return change


SMALL = {"size": [5, 5], "counts": [25]}
REFERRED, PACO = "refcoco/instances.json", "annotations/paco_lvis_v1_train.json"
CAPTIONS, PHRASES, TALKS = "annotations/captions_train2017.json", "final_flickr_separateGT_train.json", "llava_instruct_150k.json"
CASES = [
    ("refcoco", REFERRED, at("annotations", 0, "bbox", [1, 2, 3]), "annotations[0] (id 1)", "bbox", "four numbers"),
    ("refcoco", REFERRED, at("annotations", 0, "bbox", [1, 2, 300, 3]), "annotations[0] (id 1)", "bbox", "inside the"),
    ("refcoco", REFERRED, at("annotations", 1, "segmentation", SMALL), "annotations[1] (id 2)", "segmentation.size", "[48, 64]"),
    ("refcoco", REFERRED, at("annotations", 1, "segmentation", []), "annotations[1] (id 2)", "segmentation", "polygons"),
    ("refcoco", REFERRED, at("annotations", 1, "segmentation", [[1, 2, 3]]), "(id 2)", "segmentation[0]", "three or more"),
    ("refcoco", REFERRED, at("annotations", 0, "image_id", 9), "annotations[0] (id 1)", "image_id", "one of the images"),
    ("refcoco", REFERRED, at("images", 0, "width", 63), "images[0] (id 1)", "width", "expected 64"),
    ("refcoco", REFERRED, at("images", 0, "file_name", "none.jpg"), "images[0] (id 1)", "file_name", "none.jpg, which"),
    ("refcoco", REFERRED, at("images", 0, "file_name", "../../x.jpg"), "images[0]", "file_name", "inside"),
    ("refcoco", REFERRED, at("images", 1, "id", 1), "images[1] (id 1)", "id", "no other"),
    ("refcoco", REFERRED, at("annotations", ...), "", "annotations", "no such field"),
    ("multi_refcoco", REFERRED, at("annotations", 0, "bbox", "here"), "annotations[0] (id 1)", "bbox", "four numbers"),
    ("refclef", "refclef/instances.json", at("annotations", 0, "segmentation", 0, "counts", [5, 5]), "(id 1)", "segmentation[0].counts",
     "add up"),
    ("muse", "muse_train.json", at(0, "text_answers", 0, "In {seg}."), "[0]", "text_answers[0]", "for each of the 2 annotations"),
    ("muse", "muse_train.json", at(0, "answers", 1, []), "[0]", "answers[1]", "one annotation or more"),
    ("muse", "muse_train.json", at(0, "answers", [[]]), "[0]", "answers", "each of the 2 questions"),
    ("muse", "muse_train.json", at(0, "answers", 0, 1, "segmentation", ...), "[0]", "answers[0][1].segmentation", "no such field"),
    ("muse", "muse_train.json", at(1, "coco_url", "http://x/val2017/9.jpg"), "[1]", "coco_url", "9.jpg, which is missing"),
    ("reason_seg", "train/one.json", at("shapes", 0, "points", 1, [3]), "", "shapes[0].points[1]", "a point"),
    ("reason_seg", "train/one.json", at("shapes", 0, "label", "ignore"), "", "shapes", "a target polygon"),
    ("reason_seg", "train/one.json", at("is_sentence", "yes"), "", "is_sentence", "true or false"),
    ("paco", PACO, at("categories", 1, "name", "a:b:c"), "categories[1] (id 2)", "name", "object:part"),
    ("paco", PACO, at("annotations", 0, "category_id", 7), "(id 1)", "category_id", "one of the categories"),
    ("pascal_part", "train.json", at("annotations", 0, "segmentation", [[1, 1, 900, 1, 9, 9]]), "(id 1)", "segmentation[0]", "inside the"),
    ("llava_instruct", TALKS, at(0, "conversations", 1, "from", "human"), "[0]", "conversations[1].from", '"gpt"'),
    ("llava_instruct", TALKS, at(0, "conversations", 3, ...), "[0]", "conversations", "all answered"),
    ("llava_instruct", TALKS, at(0, "image", "gone.jpg"), "[0]", "image", "missing"),
    ("coco_captions", CAPTIONS, at("annotations", 1, "caption", " "), "annotations[1] (id 1)", "caption", "a text"),
    ("flickr30k", PHRASES, at("annotations", 0, "tokens_positive", [[0, 99]]), "(id 1)", "tokens_positive[0]", "23"),
    ("goldg", "final_mixed_train.json", at("annotations", 0, "bbox", [1, 1, 0, 3]), "(id 1)", "bbox", "positive"),
    ("visual_genome", "train.json", at("annotations", 1, "caption", ...), "annotations[1] (id 2)", "caption", "no such field"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "change", "record", "field", "said"), CASES)
def test_a_damaged_record_is_named(make, edit, name, file, change, record, field, said):
    folder = make(name)
    edit(folder / file, change)
    error = complaint(name, folder)
    assert error.file == str(folder / file) and record in error.record and error.field == field and said in error.message
    assert str(folder / file) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(("change", "field", "said"), [
    (at("timed_caption", 1, "end_time", 0.5), "timed_caption[1].end_time", "at or after"),
    (at("timed_caption", 0, "start_time", None), "timed_caption[0].start_time", "a number"),
    (at("traces", 0, 1, "x", "left"), "traces[0][1].x", "a number"),
    (at("caption", ...), "caption", "no such field"),
    (at("image_id", "77"), "image_id", "000000000077.jpg, which is missing"),
])  # fmt: skip
@pytest.mark.parametrize("name", ["localized_narratives", "localized_narratives_sentences"])
def test_a_damaged_narrative_is_named(make, edit, name, change, field, said):
    folder = make(name)
    path = next(folder.glob("*.jsonl"))
    edit(path, change)
    error = complaint(name, folder)
    assert (error.file, error.record, error.field) == (str(path), "line 1", field) and said in error.message


def test_a_line_that_is_no_json(make):
    folder = make("localized_narratives")
    path = next(folder.glob("*.jsonl"))
    path.write_text(path.read_text() + "\n{oops\n")
    assert complaint("localized_narratives", folder).record == "line 3"


@pytest.mark.parametrize(("name", "labels", "image"), [
    ("ade20k", "annotations/training/ADE_train_00000001.png", "images/training/ADE_train_00000001.jpg"),
    ("coco_stuff", "train2017/000000000001.png", "coco/train2017/000000000001.jpg"),
])  # fmt: skip
def test_label_maps(make, name, labels, image):
    folder = make(name)
    numbers = Image.open(folder / labels)
    numbers.resize((10, 10)).save(folder / labels)
    error = complaint(name, folder)
    assert error.file == str(folder / labels) and "64x48" in error.message and "10x10" in error.message
    Image.new("L", (64, 48), 200).save(folder / labels)
    assert "found 200" in complaint(name, folder).message
    Image.new("RGB", (64, 48)).save(folder / labels)
    assert "colours" in complaint(name, folder).message
    (folder / image).write_text("no image")
    assert "expected an image" in complaint(name, folder).message


def test_missing_neighbours(make):
    folder = make("ade20k")
    next((folder / "annotations").rglob("*.png")).unlink()
    assert "label map is missing" in str(complaint("ade20k", folder))
    folder = make("coco_stuff")
    next((folder / "coco").rglob("*.jpg")).unlink()
    assert "missing" in str(complaint("coco_stuff", folder))
    folder = make("reason_seg")
    (folder / "train" / "one.json").unlink()
    assert "one.json" in complaint("reason_seg", folder).file


@pytest.mark.parametrize(("name", "old", "new", "said"), [
    ("Annotations", "<width>64", "<width>65", "expected 64"), ("Annotations", "</annotation>", "", "expected XML"),
    ("Annotations", "<xmax>10", "<xmax>ten", "a number"), ("Annotations", "<xmax>10", "<xmax>100", "inside the 64x48"),
    ("Annotations", "<annotation>", "<!DOCTYPE a><annotation>", "document type"), ("Sentences", "a table]", "a table", "does not end"),
])  # fmt: skip
def test_damaged_entities(make, name, old, new, said):
    folder = make("entities")
    path = next((folder / name).iterdir())
    path.write_text(path.read_text().replace(old, new, 1))
    error = complaint("flickr30k", folder)
    assert error.file == str(path) and said in error.message


class Evil:
    def __reduce__(self):
        return (print, ("a pickle was run",))


def test_a_pickle_that_names_a_function_is_refused(make, capsys):
    folder = make("refcoco")
    path = folder / "refcoco" / "refs(unc).p"
    path.write_bytes(pickle.dumps([Evil()]))
    with pytest.raises(TaskError, match=r"refs\(unc\)\.p.*refused.*print"):
        open_task("refcoco", folder)
    assert capsys.readouterr().out == ""
    path.write_bytes(b"nonsense")
    with pytest.raises(TaskError, match="refused"):
        open_task("refcoco", folder)


def test_a_pickle_of_python_2_is_read(tmp_path):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(b"(lp0\n(dp1\nS'sent'\np2\nS'caf\\xe9'\np3\nsa.")  # protocol 0, byte strings
    assert refcoco.read_references(path).value == [{"sent": "café"}]


def test_damaged_references(make):
    folder = make("refcoco")
    path = folder / "refcoco" / "refs(unc).p"
    rows = pickle.loads(path.read_bytes())
    rows[0]["ann_id"] = 99
    path.write_bytes(pickle.dumps(rows, protocol=2))
    error = complaint("refcoco", folder)
    assert (error.file, error.record, error.field) == (str(path), "references[0]", "ann_id")
    rows[0]["ann_id"], rows[0]["image_id"] = 3, 1
    path.write_bytes(pickle.dumps(rows, protocol=2))
    assert "an annotation of image 1" in complaint("refcoco", folder).message
    (folder / "refcoco" / "instances.json").unlink()
    with pytest.raises(TaskError, match="instances.json: is missing"):
        open_task("refcoco", folder)


def test_unknown_names_and_splits(make, tmp_path):
    with pytest.raises(TaskError, match="unknown data set; expected one of refcoco, .*visual_genome"):
        find("imagenet")
    assert find("RefCOCO+").name == find("refcoco_plus").name == "refcoco+"
    assert find("LLaVA-Instruct-150k").name == "llava_instruct" and find("LVIS-PACO").name == "paco"
    with pytest.raises(TaskError, match="no split 'dev'; expected one of train, val, test_less"):
        open_task("muse", make("muse"), "dev")
    with pytest.raises(TaskError, match="expected the val split of muse .* found only train"):
        open_task("muse", tmp_path / "muse", "val")


def test_wrong_layouts_and_empty_splits(make, tmp_path):
    for name in ("refcoco", "muse", "reason_seg", "ade20k", "coco_stuff", "paco", "pascal_part", "llava_instruct", "localized_narratives",
                 "coco_captions", "flickr30k", "goldg", "visual_genome"):  # fmt: skip
        with pytest.raises(TaskError, match="expected the layout of"):
            open_task(name, tmp_path)
    with pytest.raises(TaskError, match="found no folder"):
        open_task("muse", tmp_path / "nowhere")
    folder = make("muse")
    (folder / "muse_train.json").write_text("[]")
    with pytest.raises(EmptySplit, match="the train split of muse is empty"):
        find("muse").open_all(folder)
    (folder / "muse_train.json").write_text("[{]")
    with pytest.raises(TaskError, match=r"muse_train\.json: expected JSON .*line 1"):
        open_task("muse", folder)
    with pytest.raises(EmptySplit, match="testB split of refcoco is empty"):
        open_task("refcoco", make("refcoco"), "testB")
    assert [t.split for t in find("refcoco").open_all(tmp_path / "refcoco")] == ["train", "testA"]


def test_sound_leaves_out_what_is_damaged(make, edit):
    folder = make("muse")
    edit(folder / "muse_train.json", at(0, "text_answers", 0, "nothing"))
    said = []
    kept = open_task("muse", folder).sound(said.append)
    assert len(kept) == 1 and kept[0].targets and len(said) == 1


def test_missing_pycocotools_is_a_sentence(make):
    script = (f"import sys\nsys.modules['pycocotools'] = None\nfrom pixel_perception.training.tasks.registry import open_task\n"
              f"try:\n    open_task('refcoco', {json.dumps(str(make('refcoco')))})[0]\nexcept ValueError as error:\n    print(error)")
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "pycocotools" in said.stdout and "install pixel_perception[" in said.stdout, said.stderr

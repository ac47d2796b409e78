"""Small folders in the real format of every data set: two or three painted images, and annotations that fit them."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

WIDTH, HEIGHT = 64, 48
SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]
LOWER = [[34, 20, 60, 20, 60, 44, 34, 44]]


def put_image(path, size=(WIDTH, HEIGHT)):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(str(path.name)))
    Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), np.uint8)).save(path)


def put_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def annotation(number, image, category=1, segmentation=SQUARE, box=(10, 10, 20, 20), **more):
    return {"id": number, "image_id": image, "category_id": category, "segmentation": segmentation, "bbox": list(box), "iscrowd": 0,
            "area": 400.0, **more}  # fmt: skip


def coco(names, annotations, categories=("mug",), **more):
    images = [{"id": i + 1, "file_name": name, "width": WIDTH, "height": HEIGHT, **more} for i, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": [{"id": i + 1, "name": n} for i, n in enumerate(categories)]}


def reference(number, image, ann, sentences, split="train"):
    said = [{"sent_id": 10 * number + i, "sent": s, "raw": s, "tokens": s.split()} for i, s in enumerate(sentences)]
    return {"ref_id": number, "ann_id": ann, "image_id": image, "category_id": 1, "split": split, "file_name": "x.jpg",
            "sent_ids": [s["sent_id"] for s in said], "sentences": said}  # fmt: skip


def refer(folder, name, by="unc", images="images/mscoco/images/train2014", references=None, segmentation=SQUARE):
    for stem in ("COCO_train2014_000000000001.jpg", "COCO_train2014_000000000002.jpg"):
        put_image(folder / images / stem)
    names = ["COCO_train2014_000000000001.jpg", "COCO_train2014_000000000002.jpg"]
    second = annotation(2, 1, segmentation=LOWER, box=(34, 20, 26, 24))
    annotations = [annotation(1, 1, segmentation=segmentation), second, annotation(3, 2)]
    put_json(folder / name / "instances.json", coco(names, annotations))
    references = references or [
        reference(1, 1, 1, ["The red mug", "left cup"]), reference(2, 1, 2, ["the bowl", "big bowl on the right", "right one"]),
        reference(3, 2, 3, ["a mug"]), reference(4, 2, 3, ["mug there"], "testA"),
    ]  # fmt: skip
    (folder / name / f"refs({by}).p").write_bytes(pickle.dumps(references, protocol=2))


def run_lengths():
    return {"size": [HEIGHT, WIDTH], "counts": [10, 20, HEIGHT * WIDTH - 30]}


def refcoco(folder):
    refer(folder, "refcoco")


def refcoco_plus(folder):
    refer(folder, "refcoco+")


def refcocog(folder):
    refer(folder, "refcocog", by="umd")


def refclef(folder):
    refer(folder, "refclef", images="images/saiapr_tc-12", segmentation=[run_lengths()])


def mdetr(folder):
    put_image(folder / "train2014" / "COCO_train2014_000000000001.jpg")
    data = coco(["COCO_train2014_000000000001.jpg"] * 2, [
        annotation(1, 1, tokens_positive=[[0, 11]], original_id=7), annotation(2, 2, tokens_positive=[[0, 8]], original_id=7)])  # fmt: skip
    data["images"][0]["caption"], data["images"][1]["caption"] = "the red mug", "left mug"
    put_json(folder / "refcoco_unc_train.json", data)


def uninext(folder):
    put_image(folder / "train2014" / "COCO_train2014_000000000001.jpg")
    data = coco(["COCO_train2014_000000000001.jpg"], [annotation(1, 1)], expressions=["the red mug", "left mug"])
    put_json(folder / "refcoco-unc" / "instances_train.json", data)


def seqtr(folder):
    put_image(folder / "train2014" / "COCO_train2014_000000000001.jpg")
    row = {"image_id": 1, "width": WIDTH, "height": HEIGHT, "bbox": [10, 10, 20, 20], "expressions": ["the red mug", "left mug"],
           "category_id": 0, "mask": SQUARE}  # fmt: skip
    put_json(folder / "refcoco-unc" / "instances.json", {"train": [row], "val": []})


def muse(folder):
    put_image(folder / "images" / "train2014" / "COCO_train2014_000000000001.jpg")
    put_image(folder / "images" / "val2017" / "000000000002.jpg")
    mug = {"bbox": [10, 10, 20, 20], "segmentation": SQUARE, "category_id": 1, "category_name": "mug", "rephrased_name": "the red mug"}
    bowl = {"bbox": [34, 20, 26, 24], "segmentation": LOWER, "category_id": 2, "category_name": "bowl"}
    size = {"height": HEIGHT, "width": WIDTH}
    put_json(folder / "muse_train.json", [
        {**size, "file_name": "COCO_train2014_000000000001.jpg", "ann_list": [mug, bowl],
         "questions": ["What holds tea and soup?", "And tea?"],
         "answers": [[mug, bowl], [mug]], "text_answers": ["Tea in {seg}, soup in {seg}.", None]},
        {**size, "coco_url": "http://images.cocodataset.org/val2017/000000000002.jpg", "ann_list": [mug]},
    ])  # fmt: skip


def reason_seg(folder):
    for split, sentence in (("train", True), ("val", False)):
        put_image(folder / split / "one.jpg")
        put_json(folder / split / "one.json", {
            "text": ["what holds tea?"] if sentence else ["the tea holder"], "is_sentence": sentence, "shapes": [
                {"label": "target", "points": [[10, 10], [30, 10], [30, 30], [10, 30]]}, {"label": "flag", "points": [[0, 0], [5, 5]]},
                {"label": "ignore", "points": [[15, 15], [20, 15], [20, 20], [15, 20]]}]})  # fmt: skip
    put_json(folder / "explanatory" / "train.json", [{"image": "one.jpg", "query": "what holds tea?", "outputs": "A mug holds drinks."}])


def label_map(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = np.zeros((HEIGHT, WIDTH), np.uint8)
    for k, value in enumerate(values):
        numbers[:, k * 16 : (k + 1) * 16] = value
    Image.fromarray(numbers).save(path)


def ade20k(folder):
    put_image(folder / "images" / "training" / "ADE_train_00000001.jpg")
    label_map(folder / "annotations" / "training" / "ADE_train_00000001.png", (0, 1, 3, 150))


def coco_stuff(folder):
    put_image(folder / "coco" / "train2017" / "000000000001.jpg")
    label_map(folder / "train2017" / "000000000001.png", (255, 0, 95, 181))


def paco(folder):
    put_image(folder / "coco" / "train2017" / "000000000001.jpg")
    data = coco(["train2017/000000000001.jpg"], [annotation(1, 1), annotation(2, 1, 2, run_lengths())], ("trash_can", "mug_(cup):handle"))
    put_json(folder / "annotations" / "paco_lvis_v1_train.json", data)


def pascal_part(folder):
    put_image(folder / "VOCdevkit" / "VOC2010" / "JPEGImages" / "2008_000001.jpg")
    put_json(folder / "train.json", coco(["2008_000001.jpg"], [annotation(1, 1)], ("dog:ear",)))


def llava_instruct(folder):
    put_image(folder / "train2017" / "000000000001.jpg")
    turns = [("human", "<image>\nWhat is here?"), ("gpt", "A mug."), ("human", "Its colour?"), ("gpt", "Red.")]
    put_json(folder / "llava_instruct_150k.json", [
        {"id": "000000000001", "image": "000000000001.jpg", "conversations": [{"from": f, "value": v} for f, v in turns]}])  # fmt: skip


def localized_narratives(folder):
    put_image(folder / "train2017" / "000000000001.jpg")
    said = [("There is", 0.0, 1.0), ("a red mug.", 1.0, 2.0), ("It is", 2.0, 3.0), ("big.", 3.0, 4.0)]
    row = {"dataset_id": "mscoco_train2017", "image_id": "1", "annotator_id": 5, "caption": "There is a red mug. It is big.",
           "timed_caption": [{"utterance": u, "start_time": s, "end_time": e} for u, s, e in said],
           "traces": [[{"x": 0.125 * (t + 1), "y": 0.25, "t": t} for t in range(3)],
                      [{"x": 0.5, "y": 0.5, "t": 3}, {"x": 0.5, "y": 0.75, "t": 4}]],
           "voice_recording": "none"}  # fmt: skip
    (folder / "coco_train_localized_narratives-00000-of-00004.jsonl").write_text(json.dumps(row) + "\n")


def coco_captions(folder):
    put_image(folder / "train2017" / "000000000001.jpg")
    texts = [{"id": i, "image_id": 1, "caption": text} for i, text in enumerate(("A mug.", "A red mug on a table."))]
    put_json(folder / "annotations" / "captions_train2017.json", coco(["000000000001.jpg"], texts))


def goldg_rows(folder, file):
    put_image(folder / "flickr30k-images" / "36979.jpg")
    phrases = [annotation(1, 1, tokens_positive=[[0, 7]]), annotation(2, 1, box=(34, 20, 26, 24), tokens_positive=[[15, 22]])]
    data = coco(["36979.jpg"], phrases, caption="Two men beside a table.")
    for row in data["annotations"]:
        del row["segmentation"]
    put_json(folder / file, data)


def flickr30k(folder):
    goldg_rows(folder, "final_flickr_separateGT_train.json")


def goldg(folder):
    goldg_rows(folder, "final_mixed_train.json")


def entities(folder):
    put_image(folder / "flickr30k-images" / "36979.jpg")
    for name in ("Sentences", "Annotations"):
        (folder / name).mkdir(parents=True)
    (folder / "train.txt").write_text("36979\n")
    (folder / "Sentences" / "36979.txt").write_text("[/EN#1/people Two men] beside [/EN#2/other a table] in [/EN#3/scene a café] .\n")
    (folder / "Annotations" / "36979.xml").write_text(
        f"<annotation><filename>36979.jpg</filename><size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
        "<object><name>1</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>10</xmax><ymax>20</ymax></bndbox></object>"
        "<object><name>1</name><bndbox><xmin>21</xmin><ymin>5</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object>"
        "<object><name>2</name><bndbox><xmin>31</xmin><ymin>21</ymin><xmax>64</xmax><ymax>48</ymax></bndbox></object>"
        "<object><name>3</name><scene>1</scene><nobndbox>0</nobndbox></object></annotation>")  # fmt: skip


def visual_genome(folder):
    put_image(folder / "VG_100K" / "2.jpg")
    put_json(folder / "train.json", coco(["2.jpg"], [
        annotation(1, 1, caption="a red mug"), annotation(2, 1, box=(34, 20, 26, 24), caption="bowl of soup")], ("object",)))  # fmt: skip


FOLDERS = {
    "refcoco": refcoco, "refcoco+": refcoco_plus, "refcocog": refcocog, "refclef": refclef, "multi_refcoco": refcoco, "muse": muse,
    "reason_seg": reason_seg, "ade20k": ade20k, "coco_stuff": coco_stuff, "paco": paco, "pascal_part": pascal_part,
    "llava_instruct": llava_instruct, "localized_narratives": localized_narratives, "localized_narratives_sentences": localized_narratives,
    "coco_captions": coco_captions, "flickr30k": flickr30k, "goldg": goldg, "visual_genome": visual_genome,
    "mdetr": mdetr, "uninext": uninext, "seqtr": seqtr, "entities": entities,
}  # fmt: skip
"""The last four are other layouts of refcoco (three) and flickr30k."""


@pytest.fixture
def make(tmp_path):
    """make(layout) writes a well-formed folder and returns its path."""

    def write(layout):
        folder = tmp_path / layout.replace("+", "plus")
        folder.mkdir()
        FOLDERS[layout](folder)
        return folder

    return write

"""Photographs of coloured boxes on grey in the real formats of data sets: small folders that a tiny network can learn."""

import json
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 96, 72
COLOURS = {"red": (220, 40, 40), "green": (40, 190, 60), "blue": (50, 70, 230), "yellow": (230, 210, 50)}


def scenes(count: int = 6):
    """(image (H, W, 3) uint8, [(colour, (x, y, width, height))]): two boxes each, one in the left and one in the right half."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        image = np.full((HEIGHT, WIDTH, 3), rng.integers(90, 150), np.uint8)
        things = []
        for k, colour in enumerate(rng.permutation(list(COLOURS))[:2].tolist()):
            width, height = rng.integers(20, 34, 2).tolist()
            x, y = k * WIDTH // 2 + int(rng.integers(2, 12)), int(rng.integers(4, HEIGHT - height - 4))
            image[y : y + height, x : x + width] = COLOURS[colour]
            things.append((colour, (x, y, width, height)))
        yield image, things


def corners(box):
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def save(image: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def refcoco(folder: Path, count: int = 6) -> Path:
    """The REFER layout of refCOCO: both boxes of each image by their colours."""
    references, images, annotations = [], [], []
    for i, (image, things) in enumerate(scenes(count), start=1):
        name = f"COCO_train2014_{i:012d}.jpg"
        save(image, folder / "images/mscoco/images/train2014" / name)
        images.append({"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT})
        for colour, box in things:
            number = len(annotations) + 1
            place = {"segmentation": corners(box), "bbox": list(box), "iscrowd": 0}
            annotations.append({"id": number, "image_id": i, "category_id": 1, **place})
            sentence = {"sent_id": number, "sent": f"the {colour} box", "raw": "", "tokens": []}
            references.append({"ref_id": number, "ann_id": number, "image_id": i, "category_id": 1, "split": "train", "file_name": name,
                               "sent_ids": [number], "sentences": [sentence]})  # fmt: skip
    (folder / "refcoco").mkdir(parents=True, exist_ok=True)
    described = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "box"}]}
    (folder / "refcoco/instances.json").write_text(json.dumps(described))
    (folder / "refcoco/refs(unc).p").write_bytes(pickle.dumps(references, protocol=2))
    return folder


def llava_instruct(folder: Path, count: int = 6) -> Path:
    """Conversations about the images, without masks."""
    rows = []
    for i, (image, things) in enumerate(scenes(count), start=1):
        save(image, folder / "train2017" / f"{i:012d}.jpg")
        first, second = (f"A {colour} box." for colour, _ in things)
        turns = [("human", "<image>\nWhat is here?"), ("gpt", first), ("human", "And?"), ("gpt", second)]
        rows.append({"id": str(i), "image": f"{i:012d}.jpg", "conversations": [{"from": f, "value": v} for f, v in turns]})
    (folder / "llava_instruct_150k.json").write_text(json.dumps(rows))
    return folder


def localized_narratives(folder: Path, count: int = 6) -> Path:
    """Narratives whose mouse circles each box while it is named."""
    rows = []
    for i, (image, things) in enumerate(scenes(count), start=1):
        save(image, folder / "train2017" / f"{i:012d}.jpg")
        said, trace = [], []
        for k, (colour, (x, y, w, h)) in enumerate(things):
            said.append({"utterance": f"a {colour} box" + ("" if k else " and"), "start_time": 2.0 * k, "end_time": 2.0 * k + 1.5})
            around = [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
            trace.append([{"x": a / WIDTH, "y": b / HEIGHT, "t": 2.0 * k + 0.5 * j} for j, (a, b) in enumerate(around)])
        caption = f"A {things[0][0]} box and a {things[1][0]} box"
        rows.append({"dataset_id": "mscoco_train2017", "image_id": str(i), "annotator_id": 1, "caption": caption, "timed_caption": said,
                     "traces": trace, "voice_recording": ""})  # fmt: skip
    (folder / "coco_train_localized_narratives-00000-of-00004.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return folder


def visual_genome(folder: Path, count: int = 6) -> Path:
    """Regions with captions, as prepared for GRiT."""
    images, annotations = [], []
    for i, (image, things) in enumerate(scenes(count), start=1):
        save(image, folder / "VG_100K" / f"{i}.jpg")
        images.append({"id": i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT})
        annotations += [{"id": 2 * i + k, "image_id": i, "category_id": 1, "bbox": list(box), "caption": f"a {colour} box"}
                        for k, (colour, box) in enumerate(things)]  # fmt: skip
    described = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    (folder / "train.json").write_text(json.dumps(described))
    return folder

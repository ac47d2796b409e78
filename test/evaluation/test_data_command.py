"""`pixel-perception evaluate --data`: tiny networks of both papers, with random weights, over data sets in their real formats."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers_on_the_spot import write_tokenizer

from pixel_perception import cli
from pixel_perception.evaluation import captions
from pixel_perception.evaluation.networks import PixelLLMPredictor, PixelLMPredictor, difference, open_network
from pixel_perception.evaluation.requests import Request
from pixel_perception.models.configurations import configuration
from pixel_perception.models.folder import save
from pixel_perception.models.perception_model import PerceptionModel
from pixel_perception.models.pixellm import images
from pixel_perception.models.pixellm.model import Batch


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny networks gain nothing from threads, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """{configuration: model folder with random weights and a tokenizer that fits}."""
    out = {}
    for name in ("pixellm-tiny", "pixelllm-tiny", "pixelllm-small-tiny"):
        base, config = tmp_path_factory.mktemp(name), configuration(name)
        torch.manual_seed(0)
        out[name] = save(PerceptionModel.of(config), base / "model", write_tokenizer(base / "tokenizer", config))
    return out


def command(capsys, *arguments):
    """Run the sub-command, expect success; returns what it printed on stdout and stderr."""
    assert cli.main(["evaluate", *map(str, arguments)]) == 0
    printed = capsys.readouterr()
    return printed.out, printed.err


TINY = ["--config", "pixellm-tiny", "--max-new-tokens", 8]  # random weights never end an answer by themselves


def refusal(capsys, *arguments):
    try:
        code = cli.main(["evaluate", *map(str, arguments)])
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr()
    assert code == 2 and printed.out == "" and printed.err.count("\n") == 1, printed
    return printed.err


@pytest.fixture
def no_java(monkeypatch):
    """METEOR's own tests pay for its start."""
    monkeypatch.setattr(captions, "has_java", lambda: False)


def test_pixellm_over_everything_that_it_can_answer(capsys, models, make, tmp_path):
    out, names = tmp_path / "out", ["refcoco", "multi_refcoco", "muse", "reason_seg", "ade20k", "paco", "flickr30k"]
    data = [f"--data={name}={make(name)}" for name in names]
    arguments = [*TINY, "--weights", models["pixellm-tiny"], "--split", "train", "--out", out, "--json", *data]
    table, bars = command(capsys, *arguments)
    assert all(f"{name}/train" in bars for name in names), "a progress bar for each data set"

    report = json.loads(table.splitlines()[-1])
    assert json.loads((out / "report.json").read_text()) == report
    assert report["config"] == "pixellm-tiny" and list(report["data"]) == [f"{name}/train" for name in names]
    assert report["data"]["refcoco/train"] == {"images": 2, "requests": 6}
    values = {(f["data"], f["metric"]): f["value"] for f in report["figures"]}
    for metric in ("giou", "ciou", "generated_giou", "generated_ciou", "p50", "mask_p90", "first_mask_ms", "total_ms"):
        assert values["refcoco/train", metric] is not None, metric
    assert values["refcoco/train", "t_acc"] == 100.0, "tokens that are given have their masks"
    assert values["multi_refcoco/train", "count_exact"] == 100.0
    assert values["muse/train", "judged_giou"] is None and values["ade20k/train", "n_acc"] is not None
    assert any("no judge was named" in text for text in report["not_computed"])
    assert any(note.startswith("MUSE: masks are matched by IoU") for note in report["notes"])

    with (out / "figures.csv").open() as file:
        assert {(r["data"], r["metric"]) for r in csv.DictReader(file)} == set(values)
    with (out / "requests.csv").open() as file:
        asked = sum(count["requests"] for count in report["data"].values())
        assert len({(r["data"], r["index"], r["number"]) for r in csv.DictReader(file)}) == asked
    plots = sorted(path.name for path in (out / "plots").glob("*.png"))
    assert {"refcoco-train-iou.png", "ade20k-train-classes.png", "muse-train-iou.png"} <= set(plots)
    assert all(np.asarray(Image.open(out / "plots" / name).convert("L")).std() > 5 for name in plots)
    assert (out / "report.txt").read_text().strip() == table.rsplit("\n", 2)[0].strip()
    assert np.asarray(Image.open(out / "sheet.jpg").convert("L")).std() > 20


@pytest.mark.parametrize("name", ["pixelllm-tiny", "pixelllm-small-tiny"])
def test_pixelllm_over_everything_that_it_can_answer(capsys, models, make, tmp_path, no_java, name):
    names = ["refcocog", "visual_genome", "coco_captions", "localized_narratives", "flickr30k"]
    data = [f"--data={n}={make(n)}" for n in names]
    table, _ = command(capsys, "--config", name, "--weights", models[name], "--split", "train", "--json", *data)
    report = json.loads(table.splitlines()[-1])
    values = {(f["data"], f["metric"]): f["value"] for f in report["figures"]}
    for key in (("refcocog/train", "ciou"), ("refcocog/train", "p50"), ("refcocog/train", "plain_cider"),
                ("visual_genome/train", "detection_map"), ("visual_genome/train", "plain_bleu4"), ("coco_captions/train", "plain_cider"),
                ("localized_narratives/train", "lbm"), ("localized_narratives/train", "generated_lbm_k1"),
                ("flickr30k/train", "p70")):  # fmt: skip
        assert values[key] is not None, key
    assert any("METEOR is a Java program" in text for text in report["not_computed"])


def test_what_was_answered_is_not_asked_again(capsys, models, make, tmp_path, monkeypatch):
    out, data = tmp_path / "out", f"--data=refcoco={make('refcoco')}"
    arguments = [*TINY, "--weights", models["pixellm-tiny"], "--split", "train", "--out", out, data]
    command(capsys, *arguments, "--limit", 1)
    first = (out / "records.jsonl").read_text()
    assert first.count("\n") == 1
    (out / "records.jsonl").write_text(first + '{"key": "cut o')  # the process was killed while it wrote
    looked, look = [], PixelLMPredictor.look
    monkeypatch.setattr(PixelLMPredictor, "look", lambda self, image: looked.append(1) or look(self, image))
    command(capsys, *arguments)
    assert len(looked) == 1, "only the second image is new"
    report = (out / "report.json").read_text()
    command(capsys, *arguments)
    assert len(looked) == 1 and (out / "report.json").read_text() == report


def test_other_weights_are_asked_anew(capsys, models, make, tmp_path):
    out, data = tmp_path / "out", f"--data=flickr30k={make('flickr30k')}"
    arguments = [*TINY, "--split", "train", "--out", out, data]
    command(capsys, *arguments, "--weights", models["pixellm-tiny"])
    torch.manual_seed(1)
    other = save(PerceptionModel.of(configuration("pixellm-tiny")), tmp_path / "other", models["pixellm-tiny"])
    command(capsys, *arguments, "--weights", other)
    assert len({json.loads(line)["key"] for line in (out / "records.jsonl").read_text().splitlines()}) == 2


def test_all_splits_but_train_without_split(capsys, models, make):
    arguments = [*TINY, "--weights", models["pixellm-tiny"]]
    table, _ = command(capsys, *arguments, f"--data=refcoco={make('refcoco')}")
    assert "refcoco/testA" in table and "refcoco/train" not in table
    line = refusal(capsys, *arguments, f"--data=ade20k={make('ade20k')}")
    assert "only the train split of ade20k" in line and "--split train" in line


def test_masks_of_given_answers_are_those_of_the_networks_own_forward_pass(models):
    predictor = open_network("pixellm-tiny", str(models["pixellm-tiny"]))
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)
    seen = predictor.look(image)
    answer = predictor.answer(seen, Request("list", "The Mug and bowl", ("The Mug", "bowl")))[""]
    question = "What is the mug and bowl in this image? Please output segmentation mask."
    ids, _ = predictor.text.row([(question, "{seg} and {seg}.")])
    frame, fitted = images.prepare(image, predictor.model.config.vision.side)
    rows = torch.tensor([ids])
    with torch.no_grad():
        (masks,) = predictor.model(Batch(frame[None], [fitted], [(50, 70)], rows, torch.ones_like(rows, dtype=torch.bool), [0])).masks
    assert len(answer.masks) == len(masks) == 2 and answer.text == "{seg} and {seg}."
    assert np.allclose(np.stack(answer.masks), masks.numpy(), atol=1e-4)


def test_muse_is_also_summed_up_over_both_of_its_test_splits(capsys, models, make):
    folder = make("muse")
    for split in ("less", "many"):
        shutil.copy(folder / "muse_train.json", folder / f"muse_test_{split}.json")
    table, _ = command(capsys, *TINY, "--weights", models["pixellm-tiny"], f"--data=muse={folder}", "--limit", 1, "--json")
    report = json.loads(table.splitlines()[-1])
    assert {name: count["requests"] for name, count in report["data"].items()} == {"muse/test_less": 2, "muse/test_many": 2, "muse/test": 4}
    (judged,) = (f for f in report["figures"] if f["data"] == "muse/test" and f["metric"] == "judged_giou")
    assert judged["published"][0]["value"] == 39.2


def test_the_trace_of_a_given_text_has_a_place_for_every_word(models):
    predictor = open_network("pixelllm-tiny", str(models["pixelllm-tiny"]))
    seen = predictor.look(np.full((60, 90, 3), 90, np.uint8))
    answers = predictor.answer(seen, Request("narrate", "a red mug on the table"))
    # The text is longer than the tiny network's 12 tokens: words behind them have no place.
    assert 1 <= len(answers[""].trace) <= 6 and answers[""].text == "a red mug on the table"
    tokens = predictor.text.tokens("a red mug on the table", predictor.model.config.words)
    first = [i for i, (_, begin, end) in enumerate(predictor.text.pieces("a red mug on the table"), start=1) if begin < 1 and end > 0]
    with torch.no_grad():
        model, rows = predictor.model, torch.tensor([[tokens]])
        visual = model.extract(seen.features, model.whole_image(seen.features))
        context = torch.tensor([[predictor.text.context("describe the image in detail", 8)]])
        points = model.read(seen.features, visual, rows, context).fractions[0, 0, first].flatten(1)  # the states that have read it
    low, high = (pick(points.view(-1, 2, 2), 1) for pick in (torch.amin, torch.amax))
    assert np.allclose(answers[""].trace[0], torch.cat([low, high], -1).mean(0).numpy(), atol=1e-5)
    assert (answers[""].trace[:, 2:] >= answers[""].trace[:, :2]).all()
    assert set(answers) == {"", "generated"}


def test_boxes_and_masks_are_those_of_the_source_image(models):
    predictor = open_network("pixelllm-tiny", str(models["pixelllm-tiny"]))
    seen = predictor.look(np.full((300, 200, 3), 90, np.uint8))
    answer = predictor.answer(seen, Request("refer", "the red mug"))[""]
    assert answer.masks[0].shape == (300, 200)
    (x0, y0, x1, y1), side = answer.boxes[0], predictor.model.config.image_size
    assert 0 <= x0 <= x1 <= 200 and 0 <= y0 <= y1 <= 300 and seen.fitted == (side, round(side * 2 / 3))
    assert isinstance(predictor, PixelLLMPredictor)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config", "pixellm-9b"], "configuration: expected one of compact, pixellm-7b"),
        (["--config", "pixellm-7b"], "--weights: expected the folder of a trained pixellm-7b"),
        (["--config", "pixellm-tiny", "--weights", "/nowhere"], "/nowhere: expected a model folder with model.json"),
        (["--config", "pixellm-7b", "--weights", "TINY"], "is not pixellm-7b: vision.dim: expected 1024, found 32"),
        (["--config", "pixelllm-t5xl", "--weights", "TINY"], "is not pixelllm-t5xl: kind: expected pixelllm, found pixellm"),
        (["--config", "pixellm-tiny", "--weights", "TINY", "--device", "abacus"], "--device: expected auto, cpu or cuda"),
        (["--config", "pixellm-tiny", "--weights", "TINY", "--limit", "0"], "--limit and --max-new-tokens: expected 1 or more"),
        (["--config", "pixellm-tiny", "--weights", "TINY", "--judge", "http://x/v1"], "--judge and --judge-model"),
        (["--images", "photographs"], "--data and --images"),
    ],
)
def test_bad_arguments(capsys, models, make, arguments, expected):
    arguments = [str(models["pixellm-tiny"]) if a == "TINY" else a for a in arguments]
    assert expected in refusal(capsys, *arguments, f"--data=refcoco={make('refcoco')}", "--split", "train")


def test_bad_data(capsys, models, make, tmp_path):
    start = [*TINY, "--weights", models["pixellm-tiny"], "--split", "train"]
    assert "expected DATASET=PATH" in refusal(capsys, *start, "--data", "refcoco")
    assert "unknown data set; expected one of refcoco" in refusal(capsys, *start, "--data", "coco=.")
    assert "found no folder" in refusal(capsys, *start, "--data", f"refcoco={tmp_path / 'none'}")
    assert "llava_instruct cannot be evaluated" in refusal(capsys, *start, "--data", f"llava={make('llava_instruct')}")
    folder = make("visual_genome")
    line = refusal(capsys, *start, "--data", f"vg={folder}")
    assert "pixellm-tiny cannot answer what visual_genome asks; expected one of" in line and "refcoco" in line
    folder = make("muse")
    assert "muse/train is named twice" in refusal(capsys, *start, "--data", f"muse={folder}", "--data", f"muse={folder}")
    (folder / "images" / "train2014" / "COCO_train2014_000000000001.jpg").unlink()
    assert cli.main(["evaluate", *map(str, start), f"--data=muse={folder}"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]  # behind the progress bar
    assert last.startswith("pixel-perception: evaluate: ") and "COCO_train2014_000000000001.jpg, which is missing" in last


@pytest.mark.parametrize("name", ["weights", "limit", "judge"])
def test_options_of_data_sets_need_one(capsys, name):
    assert f"--{name} needs --data" in refusal(capsys, f"--{name}", "1")
    assert "needs --data" in refusal(capsys, "--config", "pixellm-7b")


def test_difference_looks_only_at_the_network():
    a = {"dim": 4, "losses": {"alpha": 2}, "parts": {"x": 1}}
    assert difference(a, a | {"losses": {"alpha": 1}}) == ""
    assert difference(a, a | {"parts": {"x": 2}}) == "parts.x: expected 1, found 2"

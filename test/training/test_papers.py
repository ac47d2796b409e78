"""Both papers' networks in tiny sizes, taught from data in its real formats through the command line."""

import json

import numpy as np
import pytest
import shapes
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from stopping import stopping
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tokenizers_on_the_spot import write_tokenizer

from pixel_perception.cli import main
from pixel_perception.models import folder as model_folder
from pixel_perception.models.configurations import configuration

LEARNS = ["word_head", "decoder", "to_target", "to_text", "to_decoder", "neck", "fusion", "language.embed_tokens"]
LESSONS = {
    "pixellm": {"pixellm": {"model": "pixellm-tiny", "learns": LEARNS}, "lora": {"rank": 4, "alpha": 8},
                "data": {"refcoco": 3, "llava_instruct": 1}},
    "trace": {"pixelllm": {"stage": "trace", "model": "pixelllm-tiny"}, "data": {"localized_narratives": 1}},
    "referring": {"pixelllm": {"stage": "referring", "model": "pixelllm-small-tiny", "texts": 4, "context": 12, "scale": [0.8, 1.3]},
                  "data": {"refcoco": 1}},
    "segmentation": {"pixelllm": {"stage": "segmentation", "model": "pixelllm-tiny", "texts": 4, "context": 12}, "data": {"refcoco": 1}},
    "dense_captioning": {"pixelllm": {"stage": "dense_captioning", "model": "pixelllm-small-tiny", "texts": 4, "flip": True},
                         "data": {"visual_genome": 1}},
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Data sets, and a tokenizer for each network, by name."""
    root = tmp_path_factory.mktemp("home")
    for name in ("refcoco", "llava_instruct", "localized_narratives", "visual_genome"):
        getattr(shapes, name)(root / name, 4)
    for name in ("pixellm-tiny", "pixelllm-tiny", "pixelllm-small-tiny"):
        write_tokenizer(root / name, configuration(name))
    return root


def command(home, tmp_path, name, steps=2, **changes):
    """The arguments of `pixel-perception train` for a lesson."""
    values = LESSONS[name] | {"batch": {"total": 2, "micro": 1}, "schedule": {"steps": steps, "warmup": 2}, "memory": {"workers": 0},
                              "optimiser": {"rate": 3e-3}, "watch": {"log": 1, "pictures": 4, "samples": 2}} | changes  # fmt: skip
    path = tmp_path / "lesson.yaml"
    path.write_text(yaml.safe_dump(values))
    model = (values.get("pixellm") or values["pixelllm"])["model"]
    data = [part for source in values["data"] for part in ("--data", f"{source}={home / source}")]
    return ["train", str(path), *data, "--set", f"tokenizer={home / model}"]


@pytest.mark.parametrize("name", ["pixellm", "trace"])
def test_a_paper_learns_from_the_command_line_stops_and_goes_on(name, home, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = command(home, tmp_path, name, steps=6)
    assert main([*arguments, "--out", str(whole)]) == 0
    rows = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert sum(row["loss/total"] for row in rows[-2:]) < sum(row["loss/total"] for row in rows[:2])
    events = EventAccumulator(str(whole / "tensorboard"))
    events.Reload()
    assert {"loss/total", "loss/text", "rate", "gradient_norm", "images_per_second"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Images("predictions")] == [4, 6]
    with Image.open(whole / "pictures" / "step-00000006.png") as sheet:
        assert sheet.width > 3 * 256 and np.asarray(sheet).std() > 10
    # The same run again, told to stop on its way, and continued with batches prepared by threads.
    with monkeypatch.context() as patch:
        stopping(patch, 3)
        assert main([*arguments, "--out", str(parts)]) == 130
    assert main([*arguments, "--out", str(parts), "--set", "memory.workers=2"]) == 0
    first, second = (load_file(run / "model" / "model.safetensors") for run in (whole, parts))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    model = model_folder.load(whole / "model")
    model_name = arguments[-1].rsplit("/", 1)[-1]
    assert (model.config.language, type(model.config)) == (configuration(model_name).language, type(configuration(model_name)))


@pytest.mark.parametrize("name", ["referring", "segmentation", "dense_captioning"])
def test_the_other_stages_start_from_a_model(name, home, tmp_path):
    model = LESSONS[name]["pixelllm"]["model"]
    torch.manual_seed(0)
    start = model_folder.save(model_folder.PerceptionModel.of(configuration(model)), tmp_path / "start", home / model)
    before = load_file(start / "model.safetensors")
    assert main([*command(home, tmp_path, name)[:-2], "--set", f"start={start}", "--out", str(tmp_path / "run")]) == 0
    after = load_file(tmp_path / "run/model/model.safetensors")
    moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    expected = {"referring": {"location_head", "language", "semantic"}, "segmentation": {"location_head", "mask_adapter"},
                "dense_captioning": {"detector", "semantic"}}[name]  # fmt: skip
    assert expected <= moved and not moved & {"spatial", "prompt_encoder", "mask_decoder"}
    if name == "segmentation":
        assert moved == expected
    saved = load_file(next((tmp_path / "run").glob("state-*")) / "weights.safetensors")
    assert not any(key.startswith("model.spatial.") and "table" not in key for key in saved if key in before)  # it is in `start`
    assert (tmp_path / "run/pictures/step-00000002.png").is_file()


def broken(folder, change):
    path = folder / "refcoco" / "instances.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def wrong_mask(values):
    values["annotations"][3]["segmentation"] = {"size": [10, 10], "counts": [50, 50]}


BAD = {
    "unknown data set": (["--data", "refkoko=/data"], "unknown data set; expected one of"),
    "no folder for a data set": (["--set", "data.muse=1"], "data.muse: expected its folder (--data muse=PATH), found none"),
    "a data set that is not drawn from": (["--data", "muse={home}"], "--data muse: expected one of the configuration's data sets"),
    "a split that is not there": (["--set", "split=testZ"], "has no split 'testZ'"),
    "an empty split": (["--set", "split=val"], "the val split of refcoco is empty"),
    "no masks to learn": (["--set", "data={visual_genome: 1}", "--data", "visual_genome={home}/visual_genome"],
                          "data.visual_genome: expected a data set with questions, or with masks"),
    "another tokenizer": (["--set", "tokenizer={home}/pixelllm-tiny"], "expected a tokenizer of"),
    "no tokenizer": (["--set", "tokenizer=null"], "tokenizer: expected the folder of a tokenizer"),
    "a checkpoint of another size": (["--set", "start={home}/other"], "with codebook.tokens 3, found 2"),
    "a large network without weights": (["--set", "pixellm.model=pixellm-7b"], "start: expected the folder of a model to begin with"),
    "a part that does not exist": (["--set", "pixellm.learns=[brain]"],
                                   "pixellm.learns: expected beginnings of parameter names, found 'brain'"),
    "no projections for LoRA": (["--set", "lora.modules=[brain]"], "lora.modules: expected projections of LLaMA"),
    "no such configuration": (["--set", "pixellm.model=pixellm-70b"], "expected one of compact, pixellm-7b"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_one_sentence_before_any_step(case, home, tmp_path, capsys):
    extra, said = BAD[case]
    if case == "a checkpoint of another size" and not (home / "other").exists():
        torch.manual_seed(0)
        other = type(configuration("pixellm-tiny")).tiny(tokens=2, vocabulary=1024)
        model_folder.save(model_folder.PerceptionModel.of(other), home / "other")
    arguments = command(home, tmp_path, "pixellm", data={"refcoco": 1})
    if case == "no masks to learn":
        arguments = [arguments[0], arguments[1], *arguments[4:]]
    out = tmp_path / "run"
    assert main([*arguments, *(part.replace("{home}", str(home)) for part in extra), "--out", str(out)]) == 2
    complaint = capsys.readouterr().err.strip().splitlines()[-1]
    assert complaint.startswith("pixel-perception: train: ") and said in complaint
    assert not list(out.glob("state-*")) and not (out / "log.jsonl").exists()


@pytest.mark.parametrize(("case", "said"), [("mask", "size: expected [72, 96]"), ("image", "which is missing"),
                                            ("layout", "expected the layout of")])  # fmt: skip
def test_damaged_data_is_found_before_any_step(case, said, home, tmp_path, capsys):
    folder = shapes.refcoco(tmp_path / "data", 3)
    if case == "mask":
        broken(folder, wrong_mask)
    elif case == "image":
        next(folder.rglob("*2.jpg")).unlink()
    else:
        (folder / "refcoco" / "refs(unc).p").unlink()
        (folder / "refcoco" / "instances.json").unlink()
    arguments = command(home, tmp_path, "pixellm", data={})
    assert main([*arguments, "--data", f"refcoco={folder}", "--set", "data.refcoco=1", "--out", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_tokenizer_that_splits_the_codebook_is_refused(home, tmp_path, capsys):
    bad = tmp_path / "bad"
    bad.mkdir()
    text = (home / "pixellm-tiny" / "tokenizer.json").read_text()
    (bad / "tokenizer.json").write_text(text.replace("[SEG1]", "[SEGX]").replace("[SEG2]", "[SEG1]").replace("[SEGX]", "[SEG2]"))
    assert main([*command(home, tmp_path, "pixellm"), "--set", f"tokenizer={bad}", "--out", str(tmp_path / "run")]) == 2
    assert "expected the codebook [SEG0]..[SEG5] as the consecutive ids" in capsys.readouterr().err

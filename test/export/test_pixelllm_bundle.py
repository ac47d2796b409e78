"""A PixelLLM as a bundle: `Perception` answers as torch does, is cancelled, refuses what the model cannot do, and follows."""

import json
import shutil
from dataclasses import replace
from threading import Event

import numpy as np
import pytest
import torch
from PIL import Image
from pixelllm_on_the_spot import picture

from pixel_perception import commands
from pixel_perception.bundle import write_manifest
from pixel_perception.bundle_commands import bundle as bundle_command
from pixel_perception.bundle_commands import inspect
from pixel_perception.errors import PerceptionError
from pixel_perception.evaluation.networks import PixelLLMPredictor
from pixel_perception.evaluation.requests import Request
from pixel_perception.export.parity import GATES
from pixel_perception.export.pixelllm_bundle import TEMPLATES, export_pixelllm
from pixel_perception.models import folder
from pixel_perception.models.pixelllm.text import PixelLLMText
from pixel_perception.perception import Perception
from pixel_perception.runtime.language import Answer, Prompt
from pixel_perception.runtime.text import words
from pixel_perception.types import Query, Task

FRAME = picture()
NEAR = 1e-3 * 112
"""A thousandth of the network's frame, in pixels of the picture, which is about as large."""


@pytest.fixture(scope="module")
def ours(pixelllm_bundle):
    return Perception.open(pixelllm_bundle.folder, "onnxruntime-cpu", threads=1)


@pytest.fixture(scope="module")
def network(pixelllm_folder):
    model = folder.load(pixelllm_folder)
    return PixelLLMPredictor("tiny", "0" * 64, model, PixelLLMText.open(pixelllm_folder, model.config))


@pytest.fixture
def theirs(network):
    with torch.inference_mode():
        yield network, network.look(FRAME)


def test_bundle_is_whole_and_says_how_it_compares(pixelllm_bundle, capsys):
    exported = pixelllm_bundle
    figures = exported.parity["backends"]["onnxruntime-cpu"]
    assert all(figures[name] >= least for name, least in GATES.items()) and figures["targets"] == 3
    assert figures["box_error_px"] < NEAR and figures["kl"] < 1e-6
    assert exported.parity["graphs"]["second_stage"]["refined"] < 1e-4
    assert exported.manifest.tasks == ("SEGMENT", "REFER", "CAPTION_REGION", "CAPTION_DENSE", "NARRATE", "ANSWER")
    assert bundle_command(["verify", str(exported.folder)]) == 0 and inspect([str(exported.folder)]) == 0
    assert "accepted drift: prompts: 3 different questions" in capsys.readouterr().out


def test_captions_are_the_networks(ours, theirs):
    network, seen = theirs
    boxes = [(10.0, 10.0, 60.0, 50.0), (50.0, 20.0, 110.0, 85.0)]
    found = ours.ask(FRAME, Query(boxes=tuple(boxes)))
    wanted = [network.answer(seen, Request("region", box=box))[""].text for box in boxes]
    assert [region.caption for region in found.regions] == wanted and wanted[0] != wanted[1]
    assert found.words and all(0 < region.score < 1 for region in found.regions)
    # A picture that fills the frame: what reaches beyond a picture is cut off before it is captioned, where the release lets it be.
    square = FRAME[:, :90]
    wanted, found = network.answer(network.look(square), Request("dense"))[""], ours.ask(square, Query(task=Task.CAPTION_DENSE))
    assert len(found.regions) == len(wanted.boxes) > 2
    for region, box, text in zip(found.regions, wanted.boxes, wanted.captions, strict=True):
        np.testing.assert_allclose(region.box, box, atol=NEAR)
        assert region.caption == text
    inside = found.regions[1].box
    (region,) = ours.ask(square, Query(points=((inside[0] + 1, inside[1] + 1),))).regions
    assert region.box in [r.box for r in found.regions]


def test_narration_is_the_networks_with_every_word_placed(ours, theirs):
    network, seen = theirs
    pieces = []
    found = ours.ask(FRAME, Query(task=Task.NARRATE), lambda piece: pieces.append(piece.text))
    visual = network.model.extract(seen.features, network.model.whole_image(seen.features))
    tokens, _ = network.model.write(visual, network._context("narrate"))
    assert found.text == network.text.decode(tokens[0, 0].tolist()) and "".join(pieces) == found.text and len(pieces) > 1
    answer, encoded = Answer(), ours.encode(FRAME)
    list(ours.language.converse(ours.prefix(encoded), [Prompt(TEMPLATES.narrate, None, 96)], [answer]))
    points = network.model.trace(seen.features, visual, tokens, network._context("narrate")).fractions[0, 0, 1 : 1 + len(answer.states)]
    boxes = encoded.letterbox.to_source(ours.vision.places(encoded, np.stack(answer.states)))
    wanted = np.clip(np.concatenate((points.amin(1), points.amax(1)), -1) * [120, 90, 120, 90], 0, [120, 90, 120, 90])
    np.testing.assert_allclose(boxes, wanted, atol=NEAR)
    for word, (begin, end, inside) in zip(found.words, words(found.text, answer.tokens), strict=True):
        assert (word.begin, word.end) == (begin, end)
        np.testing.assert_allclose(word.box, boxes[inside].mean(0))
    assert found.finish_reason == "context"
    assert ours.ask(FRAME, Query(task=Task.NARRATE, max_new_tokens=2)).finish_reason == "length"


def test_an_expression_is_found_and_followed(ours, theirs):
    network, seen = theirs
    wanted = network.answer(seen, Request("refer", "the red mug"))[""]
    found = ours.ask(FRAME, Query("the red mug", Task.SEGMENT))
    (instance,) = found.instances
    np.testing.assert_allclose(instance.box, wanted.boxes[0], atol=NEAR)
    bits = wanted.masks[0] > 0
    assert found.text == instance.label == "the red mug" and instance.score == 1.0 and bits.any()
    assert (instance.mask.full(120, 90) & bits).sum() > 0.98 * (instance.mask.full(120, 90) | bits).sum()
    tokens = torch.tensor([[network.text.tokens("the red mug", network.model.config.words)]])
    visual = network.model.extract(seen.features, network.model.whole_image(seen.features))
    read = network.model.read(seen.features, visual, tokens, network._context("refer", "the red mug"))
    logits, _ = network.model.masks(seen.features, network.model.boxes(read, tokens), visual, read)
    encoded = ours.encode(FRAME)
    ours_logits, _ = ours.vision.decode(encoded, read.states[0].numpy())
    np.testing.assert_allclose(ours_logits[0], logits[0, 0], atol=1e-3 * float(logits.abs().max()))
    moved = ours.follow(np.roll(FRAME, 11, 1), found.standing)
    (again,) = ours.ask(np.roll(FRAME, 11, 1), Query("the red mug", Task.REFER)).instances
    assert moved.instances[0].box == again.box != instance.box and moved.finish_reason == "followed"
    assert moved.instances[0].track_id == instance.track_id and moved.standing.queries is None


def test_several_queries_in_one_go_are_answered_as_alone(ours):
    queries = [Query("the red mug", Task.REFER), Query(task=Task.NARRATE), Query("what is on the table", Task.ANSWER), Query("can")]
    for found, query in zip(ours.ask_all(FRAME, queries), queries, strict=True):
        alone = ours.ask(FRAME, query)
        assert found.text == alone.text and [i.box for i in found.instances] == [i.box for i in alone.instances]
        assert found.words == alone.words and bool(found.words) != bool(found.instances)


def test_cancelled_between_two_tokens(ours):
    cancel, pieces = Event(), []

    def take(piece):
        pieces.append(piece.text)
        if len(pieces) == 3:
            cancel.set()

    found = ours.ask(FRAME, Query(task=Task.NARRATE), take, cancel)
    assert found.finish_reason == "cancelled" and found.text == "".join(pieces) and len(pieces) == 3
    cancel.set()
    assert ours.ask(FRAME, Query("the red mug", Task.REFER), None, cancel).instances == ()


def test_what_a_model_cannot_do_is_refused(ours, pixelllm_bundle, tmp_path):
    with pytest.raises(PerceptionError, match="text: expected a prompt of at most 39 tokens, found .*; use fewer words."):
        ours.ask(FRAME, Query("red mug " * 30, Task.REFER))
    partly = shutil.copytree(pixelllm_bundle.folder, tmp_path / "bundle")
    manifest = pixelllm_bundle.manifest
    graphs = {name: graph for name, graph in manifest.graphs.items() if name not in ("proposals", "second_stage", "mask_decoder")}
    write_manifest(partly, replace(manifest, graphs=graphs, tasks=("REFER", "CAPTION_REGION", "NARRATE", "ANSWER")))
    less = Perception.open(partly, "onnxruntime-cpu", threads=1)
    with pytest.raises(PerceptionError, match=r"task: expected one of tiny's \(REFER, CAPTION_REGION, NARRATE, ANSWER\), found SEGMENT."):
        less.ask(FRAME, Query("the red mug", Task.SEGMENT))
    (instance,) = less.ask(FRAME, Query("the red mug", Task.REFER)).instances
    assert instance.box == ours.ask(FRAME, Query("the red mug", Task.REFER)).instances[0].box and instance.mask.area == 0
    assert less.ask(FRAME, Query(points=((30, 40),))).regions[0].caption


def test_ask_command(pixelllm_bundle, tmp_path, capsys):
    Image.fromarray(FRAME).save(tmp_path / "frame.png")
    arguments = ["--bundle", str(pixelllm_bundle.folder), "--backend", "onnxruntime-cpu", "--json"]
    assert commands.ask([str(tmp_path / "frame.png"), "the red mug", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["instances"][0]["label"] == "the red mug"


def test_nothing_is_written_over_other_files(pixelllm_folder):
    with pytest.raises(PerceptionError, match="model: expected no folder, an empty one or one with"):
        export_pixelllm("tiny", pixelllm_folder, pixelllm_folder)
    assert folder.describe(pixelllm_folder)

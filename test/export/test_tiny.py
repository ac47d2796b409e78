"""The tiny bundle: right answers by hand-set weights, the interfaces of a real bundle, cached against uncached decoding."""

import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from pixel_perception.export.tiny import write_tiny_bundle

REDS = ((40, 60, 100, 120), (60, 200, 112, 252))
BANANA = (252, 152, 332, 220)


class Reader:
    """The plainest way to use a bundle's graphs: no cache of prefixes, one image, greedy."""

    def __init__(self, bundle):
        self.bundle, self.tokens = bundle, bundle.manifest.tokens
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.sessions = {
            name: onnxruntime.InferenceSession(
                bundle.graph(name), options, providers=["CPUExecutionProvider"]
            )
            for name in bundle.manifest.graphs
        }
        language = load_file(bundle.file("language.safetensors"))
        self.embeddings = language["embeddings"].astype(np.float32)
        self.codebook_output = language["codebook_output"]
        self.tokenizer = Tokenizer.from_file(str(bundle.file("tokenizer.json")))

    def run(self, graph, **feeds):
        session = self.sessions[graph]
        return dict(zip((o.name for o in session.get_outputs()), session.run(None, feeds), strict=True))

    def past(self):
        inputs = self.sessions["language_model"].get_inputs()
        return {
            i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32)
            for i in inputs
            if i.name.startswith("past")
        }

    def step(self, embeds, past):
        """Returns logits with the codebook's columns, hidden states, and key/values as the next step's past."""
        before, count = next(iter(past.values())).shape[2], embeds.shape[1]
        bias = np.zeros((1, 1, count, before + count), np.float32)
        positions = np.arange(before, before + count)[None]
        out = self.run("language_model", inputs_embeds=embeds, position_ids=positions, attention_bias=bias,
                       asked=np.array([count - 1]), **past)  # fmt: skip
        hidden = out["hidden_states"]
        logits = np.concatenate([out["logits"][:, 0], hidden[:, -1] @ self.codebook_output.T], -1)
        return logits, hidden, {name: out[name.replace("past_key_values", "present")] for name in past}

    def prompt(self, image, question):
        maps = self.run("image_encoder", image=image[None])
        features = {name: maps[name] for name in ("features_16", "features_8")}
        boxes = np.array([[[0, 0, 1, 1]]], np.float32)
        visual = self.run("prompt_feature_extractor", **features, boxes=boxes)["visual_tokens"].reshape(
            -1, self.embeddings.shape[1]
        )
        ids = [self.tokens.begin, *self.tokenizer.encode(" " + question).ids, self.tokens.newline]
        begin = self.embeddings[[self.tokens.begin]]
        return maps, np.concatenate([begin, visual, self.embeddings[ids]])[None]

    def ask(self, image, question, most=60):
        """Text as decoded, with <ALL> and <SEG> for groups, masks (T, 72, 96) bool, presence probabilities (T,)."""
        maps, embeds = self.prompt(image, question)
        past, text, groups, run = self.past(), "", [], None
        base = len(self.embeddings) - 5
        while len(text) < most:
            logits, hidden, past = self.step(embeds, past)
            if run:
                groups.append(hidden[0, -4:])
            choice = int(logits.argmax())
            if choice == self.tokens.end:
                break
            run = (
                [*([self.tokens.all] if choice == base + 1 else []), *self.tokens.segments]
                if choice >= base
                else []
            )
            text += ("<ALL>" if len(run) == 5 else "") + "<SEG>" if run else self.tokenizer.decode([choice])
            embeds = self.embeddings[run or [choice]][None]
        if not groups:
            return text, np.zeros((0, 72, 96), bool), np.zeros(0)
        queries = self.run("token_fusion", hidden_states=np.stack(groups))["queries"]
        out = self.run("pixel_decoder", **maps, queries=queries[None])
        return text, out["mask_logits"][0] > 0, 1 / (1 + np.exp(-out["presence"][0]))


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return Reader(write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny"))


@pytest.fixture(scope="module")
def image():
    scene = np.full((288, 384, 3), 90, np.uint8)
    for (x0, y0, x1, y1), colour in (
        (REDS[0], (220, 20, 20)),
        (BANANA, (230, 210, 20)),
        (REDS[1], (200, 10, 30)),
    ):
        scene[y0:y1, x0:x1] = colour
    return scene


def pyramid(maps):
    return {name: maps[name] for name in ("features_16", "features_8")}


def cells(*boxes):
    mask = np.zeros((72, 96), bool)
    for x0, y0, x1, y1 in boxes:
        mask[y0 // 4 : y1 // 4, x0 // 4 : x1 // 4] = True
    return mask


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize(
    ("question", "answer", "targets"),
    [
        ("the red mug", " red mug<SEG>", [REDS]),
        ("find the banana", " yellow banana<SEG>", [(BANANA,)]),
        ("the mug and the banana", " red mug<SEG>, yellow banana<SEG>", [REDS, (BANANA,)]),
        ("all mugs", " red mug<ALL><SEG>", [REDS]),
        ("all bananas", " yellow banana<ALL><SEG>", [(BANANA,)]),
        ("describe", " red mug", []),
        ("describe the scene", " red mug<SEG>, yellow banana<SEG>", [REDS, (BANANA,)]),
    ],
)
def test_answers(reader, image, question, answer, targets):
    text, masks, presence = reader.ask(image, question)
    assert text == answer
    assert len(masks) == len(targets)
    for mask, target in zip(masks, targets, strict=True):
        assert iou(mask, cells(*target)) > 0.9
    assert (presence > 0.8).all()


def test_absent(reader, image):
    _, _, presence = reader.ask(image, "the unicorn")
    assert presence < 0.1
    _, _, presence = reader.ask(np.full_like(image, 90), "the red mug")
    assert presence < 0.5


def test_an_answer_without_end(reader, image):
    text, masks, _ = reader.ask(image, "mugs forever", most=400)
    assert len(text) >= 400 and len(masks) > 10


def test_proposals_find_each_object(reader, image):
    maps = reader.run("image_encoder", image=image[None])
    features = {name: maps[name] for name in ("features_16", "features_8")}
    found = reader.run("proposals", **features)
    assert (np.diff(found["scores"][0]) <= 0).all()
    assert (found["scores"][0] > reader.bundle.manifest.thresholds.proposal).sum() == 3
    queries = reader.run("prompt_feature_extractor", **features, boxes=found["boxes"][:, :3])["object_queries"][0]
    masks = reader.run("pixel_decoder", **maps, queries=queries[None])["mask_logits"][0] > 0
    for box in (BANANA, *REDS):
        assert max(iou(mask, cells(box)) for mask in masks) > 0.6


def test_batch_of_cameras(reader, image):
    other = image[:, ::-1].copy()
    both = reader.run("image_encoder", image=np.stack([image, other]))
    alone = reader.run("image_encoder", image=other[None])
    queries = np.random.default_rng(0).normal(size=(2, 3, 2, 128)).astype(np.float32)
    masks = reader.run("pixel_decoder", **both, queries=queries)["mask_logits"]
    expected = reader.run("pixel_decoder", **alone, queries=queries[1:])["mask_logits"]
    assert masks.shape == (2, 3, 72, 96)
    np.testing.assert_allclose(masks[1], expected[0], rtol=1e-4, atol=1e-4)
    boxes = np.random.default_rng(0).uniform(0, 1, (2, 3, 4)).astype(np.float32)
    for name in ("visual_tokens", "object_queries"):
        tokens = reader.run("prompt_feature_extractor", **pyramid(both), boxes=boxes)[name]
        expected = reader.run("prompt_feature_extractor", **pyramid(alone), boxes=boxes[1:])[name]
        assert tokens.shape[:2] == (2, 3)
        np.testing.assert_allclose(tokens[1], expected[0], rtol=1e-4, atol=1e-4)


def test_writes_the_same_bundle_twice(reader, tmp_path):
    assert write_tiny_bundle(tmp_path / "again").digest == reader.bundle.digest

"""Stage 2, language: the language model answers, and its codebook states drive the pixel decoder.

One sample is one image: its visual prefix, then several independent rounds that see the prefix but not each other.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pixel_perception.bundle import Thresholds
from pixel_perception.models.compact import Compact
from pixel_perception.models.config import CompactConfig
from pixel_perception.models.losses import refinement_map, text_cross_entropy
from pixel_perception.simulation.dataset import Record, load
from pixel_perception.simulation.instructions import Instruction, one
from pixel_perception.simulation.phrases import Vocabulary
from pixel_perception.training.compact import CompactLesson, tinted
from pixel_perception.training.config import ConfigError
from pixel_perception.training.lesson import Picture
from pixel_perception.training.objectives import centre_losses, direction_loss, target_losses
from pixel_perception.training.pixel_stage import PixelStage, region_targets
from pixel_perception.training.rounds import IGNORE, REGION, RoundWriter
from pixel_perception.training.scenes import Scene, centre_targets, images
from pixel_perception.training.words import PhraseEncoder, WordTeacher

ROUNDS = 9
MIX = {"refer": 4, "several": 1.5, "all_of": 1, "reasoning": 1.2, "count": 0.4, "absent": 3, "region": 1.6, "narrate": 0.5}
"""Share of each family among the rounds."""
DRAWN = 3
"""Rounds of an image that are drawn."""
REFINEMENT = 2.0
"""PixelLM's alpha: weight of pixels that several targets of one answer claim."""
STEADY_FORMS = ("name", "color", "synonym", "all", "affordance")
"""Phrases that mean the same objects from wherever one looks."""
ELSEWHERE = 0.5
"""Weight of decoding the targets in another view of the scene, which is what following a standing instruction does."""


def visual_prefix(model: Compact, features, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Visual tokens of the whole image, then of its proposals from left to right.

    valid (B, 2): width and height of the letterboxed part, normalised. -> tokens (B, P, hidden), used (B, P) bool.
    """
    with torch.no_grad():
        boxes, scores = model.proposals(features.s8)
        keep = scores >= Thresholds().proposal
        order = torch.where(keep, boxes[..., 0] + boxes[..., 2], torch.inf).sort(dim=1, stable=True).indices
        boxes, keep = boxes.gather(1, order[..., None].expand(-1, -1, 4)), keep.gather(1, order)
        whole = torch.cat([torch.zeros_like(valid), valid], 1)[:, None]
    tokens = model.prompt_features(features, torch.cat([whole, boxes], 1))[0]
    used = torch.cat([torch.ones_like(keep[:, :1]), keep], 1)
    return tokens.flatten(1, 2), used.repeat_interleave(tokens.shape[2], 1)


def sequence(model: Compact, prefix: Tensor, used: Tensor, batch: dict[str, Tensor], region: Tensor) -> Tensor:
    """Run prefix and rounds through the language model -> hidden states (B, S, hidden) of the rounds' tokens."""
    language, ids, rounds = model.language, batch["ids"], batch["rounds"]
    embedded = language.embed(ids.clamp(min=0))
    embedded = embedded.masked_scatter((ids == REGION)[..., None], region.to(embedded.dtype))
    size = len(ids)
    start = language.embed(torch.full((size, 1), model.config.language.start_id, device=ids.device))
    x = torch.cat([start, prefix, embedded], 1)
    used = torch.cat([torch.ones_like(used[:, :1]), used], 1)
    lead = used.shape[1]
    positions = torch.cat([used.long().cumsum(1) - 1, used.sum(1, keepdim=True) + batch["positions"]], 1).clamp(min=0)
    group = torch.cat([torch.zeros_like(used, dtype=torch.long), rounds], 1)
    length = x.shape[1]
    visible = torch.cat([used, rounds >= 0], 1)
    allowed = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
    allowed = allowed & visible[:, None] & ((group[:, None] == 0) | (group[:, None] == group[:, :, None]))
    allowed = allowed | torch.eye(length, dtype=torch.bool, device=ids.device)  # padding sees itself: no empty rows
    return language(x, positions, allowed)[:, lead:]


class LanguageStage(CompactLesson):
    """The losses of stage 2 for a batch of images with rounds."""

    def __init__(self, model: Compact, teacher: PixelStage, writer: RoundWriter):
        super().__init__()
        self.model, self.writer = model, writer
        self.teacher_query = teacher.phrase_query.requires_grad_(False)
        self.register_buffer("nouns", teacher.nouns, persistent=False)
        self.register_buffer("colors", teacher.colors, persistent=False)
        model.image_encoder.backbone.requires_grad_(False)

    def parts(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """batch of `collate` -> weighted losses by name."""
        model = self.model
        features, align, states = self._read(batch)
        known = batch["labels"] != IGNORE
        losses = {"text": text_cross_entropy(model.language.logits(states[known]), batch["labels"][known])}
        losses |= self._targets(features, states, batch)
        noun = batch["noun"] >= -1
        losses["noun"] = 0.3 * direction_loss(align[:, :, 0][noun], self.nouns, batch["noun"][noun] % len(self.nouns))
        losses["color"] = 0.3 * direction_loss(align[:, :, 1].flatten(0, 1), self.colors, batch["color"].flatten())
        heat = centre_losses(*model.proposals.maps(features.s8), batch["heat"], batch["centres"], batch["near"])
        losses |= {k: 0.5 * v for k, v in heat.items()}
        places = model.location_head(states[batch["word_image"], batch["word_at"]])
        losses["places"] = 4 * (places - batch["word_box"]).abs().mean() if len(places) else places.sum()
        return losses

    def look(self, batch: dict[str, Any]) -> list[Picture]:
        """The first rounds: words predicted from the right ones before them, and the masks of their targets."""
        features, _, states = self._read(batch)
        decoded = self.model.pixel_decoder(features, self._queries(states, batch["group_at"]))
        spoken = self.model.language.logits(states).argmax(-1)
        pictures = []
        for b in range(len(states)):
            pixels = batch["images"][b].cpu().numpy()
            drawn = batch["judged"][b] & (batch["group_round"][b] <= b * 100 + DRAWN)
            there = (drawn & batch["there"][b]).nonzero().flatten().tolist()
            found = (drawn & (decoded.presence[b] > 0)).nonzero().flatten().tolist()
            target = tinted(pixels, [batch["masks"][b, t] for t in there], there)
            prediction = tinted(pixels, [decoded.mask[b, t].sigmoid() for t in found], found)
            asked, wanted, said = self._words(batch["ids"][b], batch["labels"][b], spoken[b], batch["rounds"][b])
            pictures.append(Picture(pixels, target, prediction, asked, wanted, said))
        return pictures

    def _words(self, ids: Tensor, labels: Tensor, spoken: Tensor, rounds: Tensor) -> tuple[str, str, str]:
        """Questions, right answers and predicted ones of the first rounds."""
        columns: tuple[list[str], list[str], list[str]] = [], [], []
        for number in range(1, DRAWN + 1):
            mine = rounds == number
            answered = mine & (labels != IGNORE)
            if not answered.any():
                continue
            question = ids[mine][: int((labels[mine] != IGNORE).nonzero()[0])]
            for column, tokens in zip(columns, (question, labels[answered], spoken[answered]), strict=True):
                column.append(self.writer.read(tokens.tolist()))
        asked, wanted, said = ("; ".join(column) for column in columns)
        return asked, wanted, said

    def presence(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Presence logits (n,) of all targets of a batch and whether each is there (n,)."""
        features, _, states = self._read(batch)
        decoded = self.model.pixel_decoder(features, self._queries(states, batch["group_at"]))
        return decoded.presence[batch["judged"]], batch["there"][batch["judged"]]

    def _read(self, batch: dict[str, Tensor]):
        """Features of the images, word directions of the regions, and hidden states of the rounds' tokens."""
        features = self.model.image_encoder(batch["images"])
        visual, _, align = self.model.prompt_features(features, batch["boxes"])
        prefix, used = visual_prefix(self.model, features, batch["valid"])
        region = visual[batch["region_image"], batch["region_slot"]]
        return features, align, sequence(self.model, prefix, used, batch, region)

    def _queries(self, states: Tensor, first: Tensor) -> Tensor:
        at = first[..., None] + torch.arange(self.model.config.codebook.size, device=states.device)
        return self.model.token_fusion(states[torch.arange(len(states), device=states.device)[:, None, None], at])

    def _targets(self, features, states: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        model = self.model
        queries = self._queries(states, batch["group_at"])
        decoded = model.pixel_decoder(features, queries)
        elsewhere = target_losses(model.pixel_decoder(model.image_encoder(batch["other_images"]), queries),
                                  batch["other_masks"], batch["other_there"], batch["other_judged"])  # fmt: skip
        there = batch["there"]
        weights = torch.ones_like(batch["masks"])
        weights[there] = refinement_map(decoded.mask[there], REFINEMENT, batch["group_round"][there])
        losses = target_losses(decoded, batch["masks"], there, batch["judged"], weights)
        losses["presence"] = 1.5 * losses["presence"]
        losses["elsewhere"] = ELSEWHERE * sum(elsewhere.values())
        taught = batch["taught"]
        with torch.no_grad():
            wanted = self.teacher_query(batch["phrases"])
        error = (queries - wanted).square().mean((-1, -2))[taught].sum() / taught.sum().clamp(min=1)
        losses["distil"] = batch["distil"] * error / wanted[taught].var().clamp(min=1e-3)
        return losses


def draw_rounds(scene: Scene, rng: random.Random, vocabulary: Vocabulary) -> list[Instruction]:
    """`ROUNDS` instructions of the mix about one scene."""
    out: list[Instruction] = []
    while len(out) < ROUNDS:
        family = rng.choices(list(MIX), list(MIX.values()))[0]
        item = one(family, scene.objects, scene.size, rng, vocabulary)
        if item is not None and not (family == "narrate" and any(o.family == "narrate" for o in out)):
            out.append(item)
    return out


def collate(scenes: list[Scene], others: list[Scene], rng: random.Random, vocabulary: Vocabulary, writer: RoundWriter,
            encode: PhraseEncoder, shape: tuple[int, int], distil: float) -> dict[str, Tensor]:
    """Scenes -> tensors of `LanguageStage`. `others` are views of the same scenes from elsewhere; `shape` is (h, w) of the
    stride-8 map; `distil` weighs the teacher."""
    rows, region_image, region_slot, words = [], [], [], []
    base = region_targets(scenes, vocabulary, rng, 8)
    for b, scene in enumerate(scenes):
        row = {"ids": [], "labels": [], "rounds": [], "positions": [], "groups": []}
        for number, instruction in enumerate(draw_rounds(scene, rng, vocabulary), start=1):
            written = writer.write(instruction)
            offset, length = len(row["ids"]), len(written.ids)
            row["ids"] += written.ids
            row["labels"] += written.labels
            row["rounds"] += [number] * length
            row["positions"] += range(length)
            row["groups"] += [(offset + at, target, number) for at, target in written.groups]
            words += [(b, offset + at, scene.box(scene.by_label(label))) for at, label in written.words]
            if written.region is not None:
                slot = _slot(base, b, scene, written.region, vocabulary)
                region_image.append(b)
                region_slot.append(slot)
        rows.append(row)
    length, slots = max(len(r["ids"]) for r in rows), max(1, max(len(r["groups"]) for r in rows))
    count, (h4, w4) = len(scenes), (2 * shape[0], 2 * shape[1])

    def padded(key: str, fill: int) -> Tensor:
        return torch.tensor([r[key] + [fill] * (length - len(r[key])) for r in rows])

    batch = base | {
        "images": images(scenes), "valid": torch.tensor([s.valid for s in scenes]),
        "ids": padded("ids", 0), "labels": padded("labels", IGNORE), "rounds": padded("rounds", -1), "positions": padded("positions", 0),
        "region_image": torch.tensor(region_image, dtype=torch.long), "region_slot": torch.tensor(region_slot, dtype=torch.long),
        "word_image": torch.tensor([w[0] for w in words], dtype=torch.long),
        "word_at": torch.tensor([w[1] for w in words], dtype=torch.long),
        "word_box": torch.tensor([w[2] for w in words]).view(-1, 4), "distil": torch.tensor(distil),
        "other_images": images(others), "other_masks": torch.zeros(count, slots, h4, w4),
        "other_there": torch.zeros(count, slots, dtype=torch.bool), "other_judged": torch.zeros(count, slots, dtype=torch.bool),
        "masks": torch.zeros(count, slots, h4, w4), "there": torch.zeros(count, slots, dtype=torch.bool),
        "judged": torch.zeros(count, slots, dtype=torch.bool), "taught": torch.zeros(count, slots, dtype=torch.bool),
        "group_at": torch.zeros(count, slots, dtype=torch.long), "group_round": torch.zeros(count, slots, dtype=torch.long),
    }  # fmt: skip
    texts = [""] * (count * slots)
    for b, (scene, row) in enumerate(zip(scenes, rows, strict=True)):
        for t, (at, target, number) in enumerate(row["groups"]):
            batch["group_at"][b, t], batch["group_round"][b, t] = at, b * 100 + number
            batch["judged"][b, t], batch["there"][b, t] = True, bool(target.labels)
            batch["masks"][b, t] = scene.mask(target.labels)
            batch["taught"][b, t] = target.form != "narrate" or _unique(scene, target)
            texts[b * slots + t] = target.text
            if target.form in STEADY_FORMS and target.labels:
                ids = {scene.by_label(label).id for label in target.labels}
                seen = tuple(o.label for o in others[b].objects if o.id in ids)
                batch["other_masks"][b, t], batch["other_there"][b, t] = others[b].mask(seen), bool(seen)
                batch["other_judged"][b, t] = True
    batch["phrases"] = encode([t or "object" for t in texts]).unflatten(0, (count, slots))
    batch["heat"], batch["centres"], batch["near"] = centre_targets(scenes, *shape)
    return batch


def _slot(base: dict[str, Tensor], b: int, scene: Scene, label: int, vocabulary: Vocabulary) -> int:
    """The slot of an object among the sampled regions; the last slot is overwritten where it has none."""
    order = [o.label for o in scene.order[: base["boxes"].shape[1] - 1]]
    if label in order:
        return order.index(label)
    thing, slot = scene.by_label(label), base["boxes"].shape[1] - 1
    base["boxes"][b, slot] = torch.tensor(scene.box(thing)).clamp(0, 1)
    base["noun"][b, slot], base["color"][b, slot] = vocabulary.nouns.index(thing.noun), vocabulary.colors.index(thing.color)
    return slot


def _scene_of(record: Record) -> str:
    return record.id.rsplit("-", 1)[0]


def _unique(scene: Scene, target) -> bool:
    thing = scene.by_label(target.labels[0])
    return sum(o.name == thing.name for o in scene.objects) == 1


def build(vocabulary: Vocabulary, start: str | None):
    """The stage and its `collate(records, rng, done)`; `start` is weights.safetensors of the pixel stage, or of this one."""
    from pixel_perception.models.language import Language
    from pixel_perception.training.base import load_language_model

    if not start or not Path(start).is_file():
        raise ConfigError(f"start: expected weights.safetensors of the pixel stage (--set start=FILE), found {start or 'none'}")
    words = WordTeacher(vocabulary)
    config = CompactConfig()
    model = Compact(config)
    teacher = PixelStage(model, words.encode.width, words.nouns, words.colors)
    weights = load_file(start)
    continued = any(n.startswith("model.language.") for n in weights)
    if not continued:
        teacher.load_state_dict(weights)
    model.language = Language(load_language_model()[0], config)
    model.image_encoder.to(memory_format=torch.channels_last)
    writer, shape = RoundWriter(words.tokenizer, config), (config.image.height // 8, config.image.width // 8)
    stage = LanguageStage(model, teacher, writer)
    if continued:
        stage.load_state_dict(weights, strict=False)
    views: dict[str, list[Record]] = {}

    def elsewhere(record: Record, rng: random.Random) -> Record:
        """Another view of a record's scene; the same one where there is no other."""
        if not views:
            for found in load(record.folder):
                views.setdefault(_scene_of(found), []).append(found)
        return rng.choice([r for r in views[_scene_of(record)] if r.id != record.id] or [record])

    def prepare(records, rng, done):
        scenes = [Scene(r, rng) for r in records]
        others = [Scene(elsewhere(r, rng), rng) for r in records]
        # The teacher leads at first and is gone after two thirds of the run.
        return collate(scenes, others, rng, vocabulary, writer, words.encode, shape, 0.5 * max(0.0, 1 - 1.5 * done))

    return stage, prepare

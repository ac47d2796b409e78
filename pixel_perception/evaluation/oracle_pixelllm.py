"""PixelLLM and its trace metric against the reference's numbers, file by file (see `oracle`).

Our side runs in double precision: T5 does not scale its attention scores, so two correct float32 runs differ by up to
1e-4 at its logits, and here only the reference's own rounding is left.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pixel_perception.evaluation.lbm import lbm
from pixel_perception.evaluation.oracle import BOXES, FEATURES, LOSSES, compare, parameter_shapes, weights_rule
from pixel_perception.models.checkpoints import Source, load
from pixel_perception.models.pixelllm import decoding, objective
from pixel_perception.models.pixelllm.config import PixelLLMConfig
from pixel_perception.models.pixelllm.flax_names import REFERENCE
from pixel_perception.models.pixelllm.model import PixelLLM

PROPOSALS = 20
"""Proposals that the reference's run let through to the second stage. The folder does not tell; its boxes come out
for every number from 14 to 24."""

SCENE = "pixelllm_refseg.npz"
"""The file with the inputs that the other files share."""


def config_from_shapes(shapes: dict[str, tuple[int, ...]]) -> PixelLLMConfig:
    """The configuration behind a parameter tree of the reference, as far as shapes tell.

    Head counts of EVA-02 are not in its shapes: it is taken to have as many as SAM's tower, as in every published
    configuration. LoRA's scale, head counts of the two-way transformers and image strides are the released ones.
    """
    def layers(pattern: str) -> int:
        return 1 + max(int(match[1]) for name in shapes if (match := re.match(pattern, name)))

    eva, sam, t5 = "git_backbone/", "sam_backbone/", "textual/t5_module/"
    relative = {i: shapes[f"{sam}blocks.{i}/attn/rel_pos_h"] for i in range(layers(sam + r"blocks\.(\d+)"))}
    grid = shapes[f"{sam}pos_embed"][1]
    whole = tuple(i for i, (length, _) in relative.items() if length == 2 * grid - 1)
    windows = {(length + 1) // 2 for i, (length, _) in relative.items() if i not in whole}
    width = shapes[f"{sam}pos_embed"][3]
    heads = width // relative[0][1]
    patch, _, _, eva_width = shapes[f"{eva}patch_embed.proj/kernel"]
    base = PixelLLMConfig.tiny("t5", detector=any(name.startswith("box_decoder/") for name in shapes))
    queries, inner = shapes["prompt_adapter/output_tokens.weight"]
    vocabulary, language = shapes[t5 + "token_embedder/embedding"]
    t5_heads, buckets = shapes[t5 + "encoder/relpos_bias/rel_embedding"]
    query, lora = (shapes[f"{t5}encoder/layers_0/attention/query/{name}"] for name in ("kernel", "kernel_left_lora"))
    up = shapes.get("box_decoder/fpn/simfp_3.0/kernel")
    return replace(
        base,
        image_size=grid * shapes[f"{sam}patch_embed.proj/kernel"][0],
        semantic=replace(base.semantic, width=eva_width, depth=layers(eva + r"blocks\.(\d+)"), heads=heads,
                         patch=patch, hidden=shapes[f"{eva}blocks.0/mlp/w1/kernel"][1],
                         pretrain_grid=round((shapes[f"{eva}pos_embed"][1] - 1) ** 0.5)),
        spatial=replace(base.spatial, width=width, depth=len(relative), heads=heads, global_blocks=whole,
                        window=max(windows, default=0), pretrain_grid=grid,
                        patch=shapes[f"{sam}patch_embed.proj/kernel"][0], output=shapes[f"{sam}neck/2/kernel"][3]),
        features=replace(base.features, queries=queries,
                         output=shapes["prompt_adapter/output_hypernetworks_mlps.0/layers.0/kernel"][1],
                         transformer=replace(base.features.transformer, dim=inner,
                                             mlp=shapes["prompt_adapter/transformer/layers.0/mlp/lin1/kernel"][1],
                                             depth=layers(r"prompt_adapter/transformer/layers\.(\d+)"))),
        language=replace(base.language, width=language, vocabulary=vocabulary, heads=t5_heads, buckets=buckets,
                         head_width=query[1] // t5_heads, layers=layers(t5 + r"encoder/layers_(\d+)"),
                         hidden=shapes[t5 + "encoder/layers_0/mlp/wi_0/kernel"][1], lora_rank=lora[1]),
        location=replace(base.location, hidden=shapes["point_predictor/mlp/layers.0/kernel"][1]),
        detector=base.detector and replace(base.detector, upsampled=up[3], after_nms=(1000, PROPOSALS)),
    )


def build(shapes: dict[str, tuple[int, ...]], rule: Callable[[str, tuple[int, ...]], np.ndarray]) -> PixelLLM:
    """The PixelLLM that a parameter tree describes, with the weights that a rule draws, in double precision."""
    model = PixelLLM(config_from_shapes(shapes))
    load(model, Source({name: np.asarray(rule(name, shape), dtype=np.float32) for name, shape in shapes.items()}, REFERENCE))
    return model.double().eval()


def checks(folder: Path) -> Iterator[dict]:
    """A row for each array of `lbm.npz` and `pixelllm_*.npz`; one that we do not compute is infinitely wrong."""
    folder = Path(folder)
    if (folder / "lbm.npz").is_file():
        arrays = dict(np.load(folder / "lbm.npz"))
        yield from rows("lbm.npz", traces(arrays), arrays)
    if not (folder / "pixelllm_params.json").is_file() or not (folder / SCENE).is_file():
        return
    shapes = {}
    for path in (folder / "pixelllm_params.json", folder / "pixelllm_densecap_params.json"):
        shapes |= parameter_shapes(path) if path.is_file() else {}
    with torch.no_grad():
        model = build(shapes, weights_rule(folder).pixelllm)
        scene = Scene(model, dict(np.load(folder / SCENE)))
        for name, check in (("refseg", referring), ("trace", trace), ("decode", decode), ("densecap", dense_captions)):
            path = folder / f"pixelllm_{name}.npz"
            if path.is_file() and (name != "densecap" or model.detector is not None):
                arrays = dict(np.load(path))
                yield from rows(path.name, check(model, scene, arrays), arrays)


def rows(file: str, ours: dict, arrays: dict[str, np.ndarray]) -> Iterator[dict]:
    """A row for each array, with the tolerance that its kind has."""
    for name, reference in arrays.items():
        if name.startswith(("metric_", "lbm")):
            yield compare(file, name, ours.get(name, np.inf), reference, LOSSES, relative=True)
        elif np.issubdtype(reference.dtype, np.integer):
            yield compare(file, name, ours.get(name, np.inf), reference, 0.0)  # tokens are right or wrong
        else:
            pixels = name.endswith("boxes") or name in ("abs_points", "gt_points")
            yield compare(file, name, ours.get(name, np.inf), reference, BOXES if pixels else FEATURES)


class Scene:
    """The inputs that the files share, in our types, and what the model makes of them."""

    def __init__(self, model: PixelLLM, arrays: dict[str, np.ndarray]):
        arrays = {name: torch.from_numpy(value) for name, value in arrays.items()}
        self.images = arrays["images"].permute(0, 3, 1, 2).double()
        mask = arrays["padding_mask"]
        self.valid = torch.stack([mask.amax(1).sum(-1), mask.amax(2).sum(-1)], dim=-1)
        self.prompts = arrays["prompt_boxes"].double()
        self.tokens, self.context = arrays["text_tokens"].long(), arrays["context_tokens"].long()
        self.classes, self.boxes = arrays["gt_classes"], arrays["gt_boxes"].double()
        self.masks = arrays["gt_masks"][..., 0]
        self.features = model.encode(self.images, self.valid)
        self.visual = model.extract(self.features, self.prompts)

    def batch(self, **targets: Tensor) -> objective.Batch:
        """A training batch of the scene with some targets."""
        return objective.Batch(self.images, self.valid, self.prompts, self.tokens, self.classes > 0, self.context,
                               **targets)


def last(x: Tensor) -> Tensor:
    """A map (B, C, H, W) with its channels last."""
    return x.permute(0, 2, 3, 1)


def referring(model: PixelLLM, scene: Scene, arrays: dict) -> dict:
    features, size = scene.features, (model.config.image_size,) * 2
    words = model.read(features, scene.visual, scene.tokens, scene.context)
    boxes = model.boxes(words, scene.tokens)
    masks, quality = model.masks(features, boxes, scene.visual, words)
    losses = objective.forward(model, scene.batch(boxes=scene.boxes, masks=scene.masks)).losses
    height, width = scene.images.shape[-2:]
    inside = (torch.arange(width) < scene.valid[:, :1])[:, None] & (torch.arange(height) < scene.valid[:, 1:])[..., None]
    return {
        "images": last(scene.images), "padding_mask": inside, "prompt_boxes": scene.prompts,
        "text_tokens": scene.tokens, "context_tokens": scene.context, "gt_boxes": scene.boxes,
        "gt_classes": scene.classes, "gt_masks": scene.masks[..., None],
        "git_features": last(features.semantic),
        "sam_features": last(features.spatial),
        "concat_features": last(features.joined),
        "dense_pe": last(model.prompt_encoder.positions.grid(*features.joined.shape[-2:]))[0],
        "box_embed": model.prompt_encoder.boxes(scene.prompts, size).flatten(0, 1),
        "adapter_tokens": scene.visual.extracted,
        "projected_tokens": scene.visual.projected,
        "logits": words.logits.flatten(0, 1),
        "text_feats": words.states.flatten(0, 1),
        "rel_points": words.fractions.flatten(0, 1),
        "point_logits": words.point_logits.flatten(0, 1),
        "abs_points": words.points,
        "pred_boxes": boxes,
        "pred_masks": masks,
        "pred_ious": quality,
        "metric_text_loss": losses["text"],
        "metric_point_loss": losses["location"],
        "metric_mask_focal_loss": losses["mask_focal"],
        "metric_mask_dice_loss": losses["mask_dice"],
        "metric_mask_iou_pred_loss": losses["mask_quality"],
        "metric_mask_loss": losses["mask"],
    }


def trace(model: PixelLLM, scene: Scene, arrays: dict) -> dict:
    targets = torch.from_numpy(arrays["gt_points"]).double()
    done = objective.forward(model, scene.batch(traces=targets))
    return {"gt_points": targets, "abs_points": done.words.points, "metric_text_loss": done.losses["text"],
            "metric_point_loss": done.losses["location"]}


def decode(model: PixelLLM, scene: Scene, arrays: dict) -> dict:
    config, shape = model.config, scene.tokens.shape[:2]
    length = arrays["greedy_tokens"].shape[-1]
    memory = model.memory(scene.visual, scene.context)
    limits = (config.begin, config.end, length)
    greedy, score = decoding.greedy(model.language, memory, *limits)
    beams, scores = decoding.beam(model.language, memory, *limits, beams=arrays["beam_tokens"].shape[2])
    beams, scores = beams.unflatten(0, shape), scores.unflatten(0, shape)
    return {"greedy_tokens": greedy.unflatten(0, shape), "greedy_logp": score.unflatten(0, shape),
            "beam_tokens": beams, "beam_scores": scores, "best": beams[:, :, -1]}


def dense_captions(model: PixelLLM, scene: Scene, arrays: dict) -> dict:
    levels = model.detector.pyramid(scene.features.joined)
    heat, sides = model.detector.head(levels)
    ours = {"concat_features": last(scene.features.joined)}
    for i, maps in enumerate(zip(levels, heat, sides, strict=True)):
        ours |= {f"{name}_{i}": last(x) for name, x in zip(("fpn", "heat", "reg"), maps, strict=True)}
    count = arrays["boxes"].shape[1]
    found = [(d.boxes[:count], d.scores[:count]) for d in model.detect(scene.features)]
    boxes, scores = (torch.stack(x) for x in zip(*found, strict=True))
    return ours | {"boxes": boxes, "scores": scores, "classes": torch.ones_like(scores)}  # one class: object


def traces(arrays: dict[str, np.ndarray]) -> dict:
    ours = {name: value for name, value in arrays.items() if name[0] in "ab"}
    for name in arrays.keys() - ours.keys():
        match = re.fullmatch(r"lbm(\d+)_k(\d+)", name)
        if match:
            ours[name] = lbm(arrays[f"a{match[1]}"], arrays[f"b{match[1]}"], int(match[2]))
    return ours

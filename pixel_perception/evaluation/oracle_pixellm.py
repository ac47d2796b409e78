"""PixelLM against the reference's numbers, file by file (see `oracle`)."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pixel_perception.evaluation.oracle import LOSSES, compare, parameter_shapes, weights_rule
from pixel_perception.models import losses
from pixel_perception.models.checkpoints import Source, load
from pixel_perception.models.pixellm.clip_tower import resize_positions_as_published
from pixel_perception.models.pixellm.config import LossConfig, PixelLMConfig
from pixel_perception.models.pixellm.generation import generate
from pixel_perception.models.pixellm.images import prepare, unpad, valid_cells, valid_pixels
from pixel_perception.models.pixellm.model import Batch, PixelLM, mask_scores
from pixel_perception.models.pixellm.names import RELEASE
from pixel_perception.models.pixellm.published import config_from_shapes

POSITIONS = "embeddings.position_embedding.weight"
PRETRAINED_ROWS = 577  # the tower's own table is for 336 px

FILES = {
    "preprocess": "pixellm_preprocess.npz", "position_table": "pixellm_posembed.npz",
    "pixel_decoder": "pixellm_decoder.npz", "forward": "pixellm_forward.npz",
    "evaluate": "pixellm_evaluate.npz", "functions": "pixellm_functions.npz",
}
LOSS_ARRAYS = {"train_loss", "train_ce_loss", "train_mask_bce_loss", "train_mask_dice_loss", "train_mask_loss",
               "dice", "bce", "overlap", "cost_dice", "cost_bce"}


Rule = Callable[[str, tuple[int, ...]], np.ndarray]


def build(shapes: dict[str, tuple[int, ...]], rule: Rule) -> PixelLM:
    """The PixelLM that published names and shapes describe, with the weights that a rule gives."""
    model = PixelLM(config_from_shapes(shapes, PixelLMConfig(losses=LossConfig.released())))
    load(model, Source(weights(shapes, rule), RELEASE))
    return model.eval()


def weights(shapes: dict[str, tuple[int, ...]], rule: Rule) -> dict[str, Tensor]:
    """Every published tensor; the tower's are seeded by its own names and its table before the resize."""
    tensors = {}
    for name, shape in shapes.items():
        if name.endswith(("inv_freq", "position_ids")):  # computed, not drawn; nothing reads them
            tensors[name] = torch.zeros(shape)
            continue
        if name.endswith(POSITIONS):
            shape = (PRETRAINED_ROWS, shape[1])
        tensors[name] = torch.from_numpy(np.asarray(rule(name.split("vision_tower.vision_tower.")[-1], shape)))
    return tensors


def checks(folder: Path) -> Iterator[dict]:
    """A row for each array of every `pixellm_*.npz` that is there; one that we do not compute is infinitely wrong."""
    folder = Path(folder)
    if not (folder / "pixellm_params.json").is_file():
        return
    rule = weights_rule(folder).pixellm
    model = build(parameter_shapes(folder / "pixellm_params.json"), rule)
    for check in (preprocess, position_table, pixel_decoder, forward, evaluate, functions):
        path = folder / FILES[check.__name__]
        if not path.is_file():
            continue
        with np.load(path) as stored, torch.no_grad():
            arrays = dict(stored)
            ours = check(model, {name: torch.from_numpy(value) for name, value in arrays.items()}, rule)
        for name, reference in arrays.items():
            tolerance = {"tolerance": LOSSES, "relative": True} if name in LOSS_ARRAYS else {}
            yield compare(path.name, name, ours.get(name, np.inf), reference, **tolerance)


def taken(arrays: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    """The arrays that are inputs."""
    return {name: arrays[name] for name in names}


def size(text: str) -> tuple[int, int]:
    """`120x200` as (height, width)."""
    height, width = text.split("x")
    return int(height), int(width)


def preprocess(model: PixelLM, arrays: dict[str, Tensor], rule: Rule) -> dict:
    ours = {}
    for name in (name for name in arrays if name.startswith("image_")):
        index = name.removeprefix("image_")
        frame, fitted = prepare(arrays[name].numpy(), model.config.vision.side)
        ours |= {name: arrays[name], f"clip_{index}": frame, f"clip_resize_{index}": fitted}
    return ours


def position_table(model: PixelLM, arrays: dict[str, Tensor], rule: Rule) -> dict:
    name = "vision_model." + POSITIONS
    table = torch.from_numpy(rule(name, (PRETRAINED_ROWS, model.config.vision.dim)))
    grid = model.config.vision.grid
    return {"orig_577": table, f"resized_{grid**2 + 1}": resize_positions_as_published(table, grid)}


def pixel_decoder(model: PixelLM, arrays: dict[str, Tensor], rule: Rule) -> dict:
    targets, projected = arrays["text_embeds"], arrays["img_feats_4096"]
    maps = model.neck(projected)
    decoder, grid = model.decoder, maps.shape[-1]
    decoded = decoder(targets, maps[None])
    ours = taken(arrays, "text_embeds", "img_feats_4096") | {
        "sparse": targets,
        "dense": decoder.no_mask[None, :, None, None].expand(len(targets), -1, grid, grid),
        "neck": maps,
        "low_res_combined": decoded.combined[:, None],
    }
    for level, (mask, quality) in enumerate(zip(decoded.levels, decoded.qualities, strict=True)):
        code = decoder.positions[level].grid(grid << level, grid << level)
        ours |= {f"image_pe_l{level}": code, f"mask_l{level}": mask[:, None], f"iou_l{level}": quality[:, None]}
    for name in (name for name in arrays if name.startswith("post_")):
        source, fitted = name.removeprefix("post_").split("_from_")
        ours[name] = unpad(decoded.combined, size(fitted), size(source))[:, None]
    return ours


def forward(model: PixelLM, arrays: dict[str, Tensor], rule: Rule) -> dict:
    fitted, rows = [tuple(arrays["clip_resize"].tolist())], len(arrays["input_ids"])
    batch = Batch(
        arrays["images_clip"], fitted, [tuple(arrays["gt_masks"].shape[1:])], arrays["input_ids"],
        arrays["attention_masks"], [0] * rows, arrays["labels"], [arrays["gt_masks"]],
    )
    output = model(batch)
    side, grid = model.config.vision.side, model.config.vision.grid
    levels = model.vision(batch.images, valid_cells(valid_pixels(fitted, side), grid))
    text = model.to_target(output.hidden)
    weight = model.config.losses
    bce, dice = weight.refined_bce * output.losses["refined_bce"], weight.dice * output.losses["dice"]
    inputs = ("images_clip", "clip_resize", "input_ids", "attention_masks", "labels", "gt_masks")
    return taken(arrays, *inputs) | {
        "vit_last": levels[0].expand(rows, -1, -1),
        "vit_minus11": levels[1].expand(rows, -1, -1),
        "mm_proj": model.encode(batch.images, fitted).tokens.expand(rows, -1, -1),
        **{f"out_mm_proj_l{i}": model.to_decoder(x).expand(rows, -1, -1) for i, x in enumerate(levels)},
        "llm_last_hidden": output.hidden,
        "text_fc": text,
        "fused_text_embeds": output.fused,
        "pred_masks": output.masks[0],
        "mask_scores": mask_scores(output.masks[0]),
        "train_loss": output.losses["total"],
        "train_ce_loss": weight.text * output.losses["text"],
        "train_mask_bce_loss": bce,
        "train_mask_dice_loss": dice,
        "train_mask_loss": bce + dice,
        "train_text_fc_same_as_infer_maxdiff": (model.train()(batch).hidden - model.eval()(batch).hidden).abs().max(),
    }


def evaluate(model: PixelLM, arrays: dict[str, Tensor], rule: Rule) -> dict:
    features = model.encode(arrays["images_clip"], [tuple(arrays["clip_resize"].tolist())])
    prompt, forced = arrays["prompt"].tolist(), arrays["forced"].tolist()
    answer = generate(model, features, prompt, forced=forced)
    source = tuple(arrays["pred_masks"].shape[1:])
    (masks,) = model.masks(answer.fused, features, [0] * len(answer.fused), [source])
    return taken(arrays, "images_clip", "clip_resize", "prompt", "forced") | {
        "output_ids": [prompt + answer.ids],
        "fused_text_embeds": answer.fused,
        "llm_last_hidden": answer.hidden[None],
        "pred_masks": masks,
        "counts": [len(masks)],
        "mask_scores": mask_scores(masks),
        # a count of the reference's passes, not a result: the image once more for each token; ours sees it once
        "n_vit_calls": 1 + len(answer.ids),
    }


def functions(model: PixelLM, arrays: dict[str, Tensor], rule: Rule) -> dict:
    logits, targets = arrays["P"], arrays["G"]
    question = torch.tensor([0] * (len(logits) - 1) + [1])  # the last mask answers a question of its own
    bce, dice = losses.matching_costs(logits, targets)
    # The folder keeps the pairs but not which targets were offered: the first three, shifted by one, give them.
    rows, columns = losses.match_masks(logits, targets[:3].roll(1, 0))
    first, wanted = logits[:1] > 0, targets[:1] > 0
    counts = [losses.intersection_and_union(a, b) for a, b in ((~first, ~wanted), (first, wanted))]
    return taken(arrays, "P", "G") | {
        "dice": losses.mask_dice(logits, targets).mean(),
        "bce": losses.mask_bce(logits, targets).mean(),
        "overlap": losses.overlap_bce(logits, targets, question).mean(),
        "cost_dice": dice,
        "cost_bce": bce,
        "match_rows": rows,
        "match_cols": columns,
        "iou_inter": torch.cat([both for both, _ in counts]),
        "iou_union": torch.cat([either for _, either in counts]),
    }

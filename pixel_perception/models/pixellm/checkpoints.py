"""Published PixelLM weights into our layout: merged or with LoRA beside them, sharded or whole, CLIP apart.

The published layout is that of the release (`model.mask_decoder...`), with CLIP's tower either inside it or in
OpenAI's own files. Every tensor is accounted for by both names before anything is copied.
"""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pixel_perception.models.pixellm.clip_tower import resize_positions_as_published
from pixel_perception.models.pixellm.model import PixelLM
from pixel_perception.models.tensor_files import CheckpointError, Folder, Row

LORA_SCALE = 2.0
"""alpha / rank of the release: 16 / 8."""

FRESH = {"fusion.weights", "decoder.scale_weights"}
"""Ours alone: constants in the release, so their initial values stand."""

_ATTENTION = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "out"}
_CROSS = {
    "self_attn": "self_attention", "cross_attn_token_to_image": "token_to_image",
    "cross_attn_image_to_token": "image_to_token",
}
TOWER = r"(?:model\.vision_tower\.vision_tower\.)?vision_model\."

RULES: list[tuple[str, str | Callable[[re.Match], str]]] = [
    (r"model\.embed_tokens\.weight", "language.embed_tokens.weight"),
    (r"model\.layers\.(\d+\..+)", r"language.layers.\1"),
    (r"model\.norm\.weight", "language.norm.weight"),
    (r"lm_head\.weight", "word_head.weight"),
    (r"model\.mm_projector\.([02])\.(\w+)", lambda m: f"to_text.layers.{int(m[1]) // 2}.{m[2]}"),
    (r"model\.out_mm_projector\.([02])\.(\w+)", lambda m: f"to_decoder.layers.{int(m[1]) // 2}.{m[2]}"),
    (r"model\.text_hidden_fcs\.0\.([02])\.(\w+)", lambda m: f"to_target.layers.{int(m[1]) // 2}.{m[2]}"),
    (r"model\.image_feature_neck\.(\d\.\w+)", r"neck.\1"),
    (r"model\.prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix", "decoder.positions.0.frequencies"),
    (r"model\.prompt_encoder\.no_mask_embed\.weight", "decoder.no_mask"),
    (r"model\.mask_decoder\.pe(\d+)\.positional_encoding_gaussian_matrix", r"decoder.positions.\1.frequencies"),
    (r"model\.mask_decoder\.level_embed\.weight", "decoder.level_code"),
    (r"model\.mask_decoder\.iou_token\.weight", "decoder.head.quality_token"),
    (r"model\.mask_decoder\.mask_tokens\.weight", "decoder.head.mask_tokens"),
    (r"model\.mask_decoder\.output_hypernetworks_mlps\.(.+)", r"decoder.head.hypernetworks.\1"),
    (r"model\.mask_decoder\.iou_prediction_head\.(.+)", r"decoder.head.quality.\1"),
    (r"model\.mask_decoder\.output_upscaling\.([01]\.\w+)", r"decoder.upscale.\1"),
    (r"model\.mask_decoder\.upsample_2x\.([01]\.\w+)", r"decoder.widen.0.\1"),
    (r"model\.mask_decoder\.transformer\.(\d+)\.layers\.(\d+)\.(\w+_attn\w*|cross_\w+)\.(\w+)\.(\w+)",
     lambda m: f"decoder.transformers.{m[1]}.blocks.{m[2]}.{_CROSS[m[3]]}.{_ATTENTION[m[4]]}.{m[5]}"),
    (r"model\.mask_decoder\.transformer\.(\d+)\.layers\.(\d+)\.mlp\.lin([12])\.(\w+)",
     lambda m: f"decoder.transformers.{m[1]}.blocks.{m[2]}.mlp.layers.{int(m[3]) - 1}.{m[4]}"),
    (r"model\.mask_decoder\.transformer\.(\d+)\.layers\.(\d+)\.(norm\d\.\w+)", r"decoder.transformers.\1.blocks.\2.\3"),
    (r"model\.mask_decoder\.transformer\.(\d+)\.final_attn_token_to_image\.(\w+)\.(\w+)",
     lambda m: f"decoder.transformers.{m[1]}.final_attention.{_ATTENTION[m[2]]}.{m[3]}"),
    (r"model\.mask_decoder\.transformer\.(\d+)\.norm_final_attn\.(\w+)", r"decoder.transformers.\1.final_norm.\2"),
    (TOWER + r"embeddings\.class_embedding", "vision.class_token"),
    (TOWER + r"embeddings\.patch_embedding\.weight", "vision.patches.weight"),
    (TOWER + r"embeddings\.position_embedding\.weight", "vision.positions"),
    (TOWER + r"pre_layrnorm\.(\w+)", r"vision.norm.\1"),
    (TOWER + r"encoder\.layers\.(\d+)\.self_attn\.(\w+)\.(\w+)",
     lambda m: f"vision.blocks.{m[1]}.attention.{_ATTENTION[m[2]]}.{m[3]}"),
    (TOWER + r"encoder\.layers\.(\d+)\.mlp\.fc([12])\.(\w+)",
     lambda m: f"vision.blocks.{m[1]}.mlp.layers.{int(m[2]) - 1}.{m[3]}"),
    (TOWER + r"encoder\.layers\.(\d+)\.layer_norm([12])\.(\w+)", r"vision.blocks.\1.norm\2.\3"),
]

UNUSED: list[tuple[str, str]] = [
    (r".*rotary_emb\.inv_freq", "computed from the sizes"),
    (r".*position_ids", "computed from the sizes"),
    (r"model\.prompt_encoder\.(point_embeddings|not_a_point_embed|mask_downscaling)\..*", "PixelLM gives no such prompt"),
    (TOWER + r"post_layernorm\..*", "features are taken before it"),
    (r"text_model\..*|text_projection\..*|visual_projection\..*|logit_scale", "not part of CLIP's image tower"),
]


def our_name(published: str) -> str | None:
    """The name in our layout of a published tensor, or None when no rule knows it."""
    for pattern, name in RULES:
        if match := re.fullmatch(pattern, published):
            return match.expand(name) if isinstance(name, str) else name(match)
    return None


def plain_name(name: str) -> str:
    """A published name without what training wrappers put around it."""
    name = re.sub(r"^(module\.|base_model\.model\.)+", "", name)
    return name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")


def plan(published: Mapping[str, tuple[int, ...]], model: PixelLM) -> list[Row]:
    """The mapping for published names and shapes, a row per tensor of either side; nothing is read or copied."""
    ours = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    shapes = {plain_name(name): (name, tuple(shape)) for name, shape in published.items()}
    rows, seen = [], set()
    for plain, (name, shape) in shapes.items():
        if ".lora_" in plain:
            base = re.sub(r"\.lora_[AB]\.(default\.)?weight$", ".weight", plain)
            rows.append(Row(name, our_name(base) or "", shape, None, "merge LoRA" if base in shapes else "extra"))
            continue
        target = our_name(plain)
        if reason := next((why for pattern, why in UNUSED if re.fullmatch(pattern, plain)), None):
            rows.append(Row(name, "", shape, None, "unused", reason))
        elif target in ours:
            seen.add(target)
            rows.append(Row(name, target, shape, ours[target], *_fit(target, shape, ours[target], model)))
        elif target and target.startswith("vision.blocks."):
            rows.append(Row(name, "", shape, None, "unused", "deeper than any level that is used"))
        else:
            rows.append(Row(name, "", shape, None, "extra"))
    for name, shape in ours.items():
        if name not in seen:
            rows.append(Row("", name, None, shape, "fresh" if name in FRESH else "missing"))
    return rows


def _fit(target: str, shape: tuple[int, ...], wanted: tuple[int, ...], model: PixelLM) -> tuple[str, str]:
    if shape == wanted:
        return "load", ""
    if shape in {(1, *wanted)}:  # one-row embedding tables hold our plain vectors
        return "load", "one row"
    if target == "vision.positions" and shape[1:] == wanted[1:]:
        return "resize", "with the published index slip"
    return "shape", ""


def load(model: PixelLM, tensors: Mapping[str, Tensor], lora_scale: float = LORA_SCALE) -> list[Row]:
    """Copy published tensors into the model and return the mapping.

    Raises CheckpointError, before anything is copied, when a tensor is missing, extra or mis-shaped.
    """
    shapes = tensors.shapes() if isinstance(tensors, Folder) else {name: x.shape for name, x in tensors.items()}
    rows = plan(shapes, model)
    if bad := [row for row in rows if not row.ok]:
        raise CheckpointError(f"{len(bad)} tensors do not fit:\n" + "\n".join(map(str, bad)))
    lora: dict[str, dict[str, str]] = {}
    for row in rows:
        if row.status == "merge LoRA":
            lora.setdefault(row.ours, {})["A" if ".lora_A." in row.published else "B"] = row.published
    state = model.state_dict()
    for row in rows:
        if row.status not in ("load", "resize"):
            continue
        value = tensors[row.published]
        if row.status == "resize":
            value = resize_positions_as_published(value.float(), model.config.vision.grid)
        if factors := lora.get(row.ours):
            a, b = tensors[factors["A"]].float(), tensors[factors["B"]].float()
            value = value.float() + lora_scale * (b @ a)
        with torch.no_grad():
            state[row.ours].copy_(value.reshape(state[row.ours].shape))
    return rows

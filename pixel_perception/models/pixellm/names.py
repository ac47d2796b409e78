"""The names of PixelLM's release, of CLIP's image tower and of the LLaVA models that training starts from, and ours."""

import re
from math import isqrt

import torch

from pixel_perception.models.layouts import Change, Layout, Rule
from pixel_perception.models.pixellm.clip_tower import resize_positions_as_published

_ATTENTION = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "out"}
_CROSS = {
    "self_attn": "self_attention", "cross_attn_token_to_image": "token_to_image",
    "cross_attn_image_to_token": "image_to_token",
}
TOWER = r"(?:model\.vision_tower\.vision_tower\.)?vision_model\."

RESIZE = Change(
    "resize", "with the published index slip", lambda theirs, ours: theirs[1:] == ours[1:],
    lambda value, ours: resize_positions_as_published(value.float(), isqrt(len(ours) - 1)),
)
GROW = Change(
    "grow", "the rows behind start fresh", lambda theirs, ours: theirs[0] < ours[0] and theirs[1:] == ours[1:],
    lambda value, ours: torch.cat([value.to(ours), ours[len(value) :]]),
)


def plain_name(name: str) -> str:
    """A published name without what training wrappers put around it."""
    name = re.sub(r"^(module\.|base_model\.model\.)+", "", name)
    return name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")


def _language(change: Change | None = None) -> list[Rule]:
    return [
        Rule(r"model\.embed_tokens\.weight", "language.embed_tokens.weight", change=change),
        Rule(r"model\.layers\.(\d+\..+)", r"language.layers.\1"),
        Rule(r"model\.norm\.weight", "language.norm.weight"),
        Rule(r"lm_head\.weight", "word_head.weight", change=change),
    ]


_TOWER_RULES = [
    Rule(TOWER + r"embeddings\.class_embedding", "vision.class_token"),
    Rule(TOWER + r"embeddings\.patch_embedding\.weight", "vision.patches.weight"),
    Rule(TOWER + r"embeddings\.position_embedding\.weight", "vision.positions", change=RESIZE),
    Rule(TOWER + r"pre_layrnorm\.(\w+)", r"vision.norm.\1"),
    Rule(TOWER + r"encoder\.layers\.(\d+)\.self_attn\.(\w+)\.(\w+)",
         lambda m: f"vision.blocks.{m[1]}.attention.{_ATTENTION.get(m[2], m[2])}.{m[3]}"),
    Rule(TOWER + r"encoder\.layers\.(\d+)\.mlp\.fc([12])\.(\w+)",
         lambda m: f"vision.blocks.{m[1]}.mlp.layers.{int(m[2]) - 1}.{m[3]}"),
    Rule(TOWER + r"encoder\.layers\.(\d+)\.layer_norm([12])\.(\w+)", r"vision.blocks.\1.norm\2.\3"),
]
_DECODER, _LAYER = r"model\.mask_decoder\.", r"model\.mask_decoder\.transformer\.(\d+)\.layers\.(\d+)\."
_RELEASE_RULES = [
    Rule(r"model\.mm_projector\.([02])\.(\w+)", lambda m: f"to_text.layers.{int(m[1]) // 2}.{m[2]}"),
    Rule(r"model\.out_mm_projector\.([02])\.(\w+)", lambda m: f"to_decoder.layers.{int(m[1]) // 2}.{m[2]}"),
    Rule(r"model\.text_hidden_fcs\.0\.([02])\.(\w+)", lambda m: f"to_target.layers.{int(m[1]) // 2}.{m[2]}"),
    Rule(r"model\.image_feature_neck\.(\d\.\w+)", r"neck.\1"),
    Rule(r"model\.prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix", "decoder.positions.0.frequencies"),
    Rule(r"model\.prompt_encoder\.no_mask_embed\.weight", "decoder.no_mask", lambda x: x[0]),
    Rule(_DECODER + r"pe(\d+)\.positional_encoding_gaussian_matrix", r"decoder.positions.\1.frequencies"),
    Rule(_DECODER + r"level_embed\.weight", "decoder.level_code"),
    Rule(_DECODER + r"iou_token\.weight", "decoder.head.quality_token"),
    Rule(_DECODER + r"mask_tokens\.weight", "decoder.head.mask_tokens"),
    Rule(_DECODER + r"output_hypernetworks_mlps\.(.+)", r"decoder.head.hypernetworks.\1"),
    Rule(_DECODER + r"iou_prediction_head\.(.+)", r"decoder.head.quality.\1"),
    Rule(_DECODER + r"output_upscaling\.([01]\.\w+)", r"decoder.upscale.\1"),
    Rule(_DECODER + r"upsample_2x\.([01]\.\w+)", r"decoder.widen.0.\1"),
    Rule(_LAYER + r"(self_attn|cross_attn_token_to_image|cross_attn_image_to_token)\.([qkv]_proj|out_proj)\.(\w+)",
         lambda m: f"decoder.transformers.{m[1]}.blocks.{m[2]}.{_CROSS[m[3]]}.{_ATTENTION[m[4]]}.{m[5]}"),
    Rule(_LAYER + r"mlp\.lin([12])\.(\w+)",
         lambda m: f"decoder.transformers.{m[1]}.blocks.{m[2]}.mlp.layers.{int(m[3]) - 1}.{m[4]}"),
    Rule(_LAYER + r"(norm\d\.\w+)", r"decoder.transformers.\1.blocks.\2.\3"),
    Rule(_DECODER + r"transformer\.(\d+)\.final_attn_token_to_image\.([qkv]_proj|out_proj)\.(\w+)",
         lambda m: f"decoder.transformers.{m[1]}.final_attention.{_ATTENTION[m[2]]}.{m[3]}"),
    Rule(_DECODER + r"transformer\.(\d+)\.norm_final_attn\.(\w+)", r"decoder.transformers.\1.final_norm.\2"),
]

_COMPUTED = {r".*rotary_emb\.inv_freq|.*position_ids": "computed from the sizes"}
_TOWER_UNUSED = {TOWER + r"post_layernorm\..*": "features are taken before it"}
_DEEPER = {"vision.blocks.": "deeper than any level that is used"}

RELEASE = Layout(
    "PixelLM's release", r"mask_decoder\.", [*_language(), *_RELEASE_RULES, *_TOWER_RULES],
    unused={**_COMPUTED, **_TOWER_UNUSED, r"model\.prompt_encoder\.(?:point_embeddings|not_a_point_embed|mask_downscaling)\..*":
            "PixelLM gives no such prompt"},
    # Ours alone: constants in the release, so their initial values stand.
    fresh=("fusion.weights", "decoder.scale_weights"), absent=_DEEPER, text=True, plain=plain_name, lora_scale=2.0,  # alpha / rank: 16 / 8
)  # fmt: skip

LLAVA = Layout(
    "a LLaVA model", r"model\.embed_tokens\.weight", [*_language(GROW), *_TOWER_RULES],
    unused={**_COMPUTED, **_TOWER_UNUSED, r"model\.mm_projector\..*": "LLaVA's projector, linear or of two layers, has another shape "
            "than PixelLM's, which starts fresh", r"model\.image_newline": "PixelLM reads one square image"},
    absent=_DEEPER, start=True, text=True, plain=plain_name,
)  # fmt: skip

CLIP = Layout(
    "OpenAI's CLIP", r"vision_model\.", _TOWER_RULES,
    unused={**_COMPUTED, **_TOWER_UNUSED,
            r"text_model\..*|text_projection\..*|visual_projection\..*|logit_scale": "not part of CLIP's image tower"},
    absent=_DEEPER, plain=plain_name,
)  # fmt: skip

LAYOUTS = (RELEASE, LLAVA, CLIP)
PRETRAINED = {"vision": "OpenAI's CLIP", "language": "a LLaVA model", "word_head": "a LLaVA model"}
"""Our parts that training does not start from scratch, and where they come from."""

"""The names of the pretrained models that PixelLLM starts from, as they are published in safetensors, and ours.

SAM: `facebook/sam-vit-huge`. EVA-02: the CLIP-trained tower, under timm's names or the authors'. Flan-T5:
`google/flan-t5-xl` (or any T5 1.1 of the configured size).
"""

from pixel_perception.models.layouts import Layout, Rule

TRUNK = r"(?:visual\.(?:trunk\.)?)?"
"""What open_clip and the authors put before the names of EVA-02's image tower."""


def _prefixed(theirs: str, ours: str, names: dict[str, str], endings: str = "weight|bias") -> list[Rule]:
    """Rules for layers whose parameters keep their endings; the ending is the last group."""
    groups = theirs.count("(") - theirs.count("(?:")
    return [Rule(rf"{theirs}{a}\.({endings})", rf"{ours}{b}.\{groups + 1}") for a, b in names.items()]


def _permuted(x):
    return x.permute(0, 3, 1, 2)


def _first(x):
    return x[0]


def _sam() -> list[Rule]:
    vision, block, mine = "vision_encoder", r"vision_encoder\.layers\.(\d+)\.", r"spatial.blocks.\1."
    rules = _prefixed(rf"{vision}\.", "spatial.", {r"patch_embed\.projection": "patch", r"neck\.conv1": "neck.0",
                      r"neck\.layer_norm1": "neck.1", r"neck\.conv2": "neck.2", r"neck\.layer_norm2": "neck.3"})
    rules += _prefixed(block, mine, {"layer_norm1": "norm1", "layer_norm2": "norm2", r"attn\.qkv": "attention.qkv",
                       r"attn\.proj": "attention.out", r"mlp\.lin1": "mlp.0", r"mlp\.lin2": "mlp.2"})
    rules += [
        Rule(rf"{vision}\.pos_embed", "spatial.position", _permuted),
        Rule(block + r"attn\.rel_pos_h", mine + "attention.relative_y"),
        Rule(block + r"attn\.rel_pos_w", mine + "attention.relative_x"),
        Rule(r"shared_image_embedding\.positional_embedding", "prompt_encoder.positions.frequencies"),
        Rule(r"prompt_encoder\.point_embed\.(\d)\.weight", "prompt_encoder.kinds", _first, r"\1"),
        Rule(r"prompt_encoder\.not_a_point_embed\.weight", "prompt_encoder.no_point", _first),
        Rule(r"prompt_encoder\.no_mask_embed\.weight", "prompt_encoder.no_mask", _first),
        Rule(r"mask_decoder\.iou_token\.weight", "mask_decoder.head.quality_token"),
        Rule(r"mask_decoder\.mask_tokens\.weight", "mask_decoder.head.mask_tokens"),
    ]
    rules += _prefixed(r"prompt_encoder\.mask_embed\.", "prompt_encoder.mask_branch.",
                       {"conv1": "0", "layer_norm1": "1", "conv2": "3", "layer_norm2": "4", "conv3": "6"})
    decoder, ours = r"mask_decoder\.", "mask_decoder."
    rules += _prefixed(decoder, ours, {"upscale_conv1": "upscaling.0", "upscale_layer_norm": "upscaling.1",
                       "upscale_conv2": "upscaling.3", r"transformer\.layer_norm_final_attn": "transformer.final_norm"})
    layers = {"proj_in": "layers.0", r"layers\.0": "layers.1", "proj_out": "layers.2"}
    rules += _prefixed(decoder + r"output_hypernetworks_mlps\.(\d)\.", ours + r"head.hypernetworks.\1.", layers)
    rules += _prefixed(decoder + r"iou_prediction_head\.", ours + "head.quality.", layers)
    layer, mine = decoder + r"transformer\.layers\.(\d+)\.", ours + r"transformer.blocks.\1."
    rules += _prefixed(layer, mine, {f"layer_norm{i}": f"norm{i}" for i in range(1, 5)})
    rules += _prefixed(layer, mine, {r"mlp\.lin1": "mlp.layers.0", r"mlp\.lin2": "mlp.layers.1"})
    projections = {f"{p}_proj": p for p in ("q", "k", "v", "out")}
    for a, b in (("self_attn", "self_attention"), ("cross_attn_token_to_image", "token_to_image"),
                 ("cross_attn_image_to_token", "image_to_token")):
        rules += _prefixed(rf"{layer}{a}\.", f"{mine}{b}.", projections)
    rules += _prefixed(decoder + r"transformer\.final_attn_token_to_image\.", ours + "transformer.final_attention.",
                       projections)
    return rules


def _eva02() -> list[Rule]:
    block, mine = TRUNK + r"blocks\.(\d+)\.", r"semantic.blocks.\1."
    rules = _prefixed(TRUNK, "semantic.", {r"patch_embed\.proj": "patch", "norm": "norm"})
    rules += _prefixed(block, mine, {
        "norm1": "norm1", "norm2": "norm2", r"attn\.q_proj": "attention.query", r"attn\.k_proj": "attention.key",
        r"attn\.v_proj": "attention.value", r"attn\.proj": "attention.out",
        r"mlp\.(?:fc1_g|w1)": "mlp.gate", r"mlp\.(?:fc1_x|w2)": "mlp.up", r"mlp\.(?:norm|ffn_ln)": "mlp.norm",
        r"mlp\.(?:fc2|w3)": "mlp.down"})
    rules += [
        Rule(block + r"attn\.q_bias", mine + "attention.query.bias"),
        Rule(block + r"attn\.v_bias", mine + "attention.value.bias"),
        Rule(TRUNK + "cls_token", "semantic.cls"),
        Rule(TRUNK + "pos_embed", "semantic.position"),
    ]
    return rules


def _flan_t5() -> list[Rule]:
    rules = [Rule(r"shared\.weight", "language.embedding.weight"), Rule(r"lm_head\.weight", "language.logits.weight")]
    for half, last in (("encoder", 1), ("decoder", 2)):
        layer, mine = rf"{half}\.block\.(\d+)\.layer\.", rf"language.{half}.\1."
        kinds = [(0, "SelfAttention", "attention")] + ([(1, "EncDecAttention", "cross")] if last == 2 else [])
        for number, theirs, ours in kinds:
            names = {"q": "query", "k": "key", "v": "value", "o": "out"}
            rules += _prefixed(rf"{layer}{number}\.{theirs}\.", f"{mine}{ours}.", names)
            rules += _prefixed(rf"{layer}{number}\.", mine, {"layer_norm": f"norm{number + 1}"})
        names = {"wi_0": "gate", "wi_1": "up", "wo": "down"}
        rules += _prefixed(rf"{layer}{last}\.DenseReluDense\.", f"{mine}mlp.", names)
        rules += _prefixed(rf"{layer}{last}\.", mine, {"layer_norm": "norm3"})
        rules += [
            Rule(rf"{half}\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.weight",
                 f"language.{half}_bias.table.weight"),
            Rule(rf"{half}\.final_layer_norm\.weight", f"language.{half}_norm.weight"),
        ]
    return rules


SAM = Layout("SAM", r"vision_encoder\.", _sam(), start=True,
             unused={r"prompt_encoder\.shared_embedding\..*": "a second copy of the position code"})

EVA02 = Layout("EVA-02", r"blocks\.\d+\.(?:attn|mlp)\.", _eva02(), start=True, unused={
    rf"{TRUNK}head\..*": "features are taken before it", rf"{TRUNK}rope\..*|.*freqs_(?:cos|sin)": "computed from the sizes",
    r"text\..*|logit_scale": "not part of the image tower"})  # fmt: skip

FLAN_T5 = Layout("Flan-T5", r"(?:en|de)coder\.block\.", _flan_t5(), start=True, text=True, fresh=("lora_down", "lora_up"),
                 unused={r"(?:en|de)coder\.embed_tokens\.weight": "a second copy of the embedding"})

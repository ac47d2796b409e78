"""The names of the reference implementation's parameter tree (Flax, slashes) and ours.

Flax stores linear weights as (in, out) and kernels as (height, width, in, out), torch as (out, in, height, width).
"""

from collections.abc import Callable, Mapping

from torch import Tensor

from pixel_perception.models.layouts import Layout, Rule, same
from pixel_perception.models.pixelllm.hub_names import EVA02, FLAN_T5, SAM


def _linear(x: Tensor) -> Tensor:
    return x.T


def _conv(x: Tensor) -> Tensor:
    return x.permute(3, 2, 0, 1)


def _up(x: Tensor) -> Tensor:
    # Flax correlates the dilated input, so its kernel lies the other way round than torch's.
    return x.flip(0, 1).permute(2, 3, 0, 1)


def _up_transposed(x: Tensor) -> Tensor:
    # With `transpose_kernel` Flax turns the kernel itself and stores (height, width, out, in).
    return x.permute(3, 2, 0, 1)


def _first(x: Tensor) -> Tensor:
    return x[0]


def _map(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def _rules() -> list[Rule]:
    rules: list[Rule] = []

    def add(pattern: str, name: str, turn: Callable[[Tensor], Tensor] = same, slot: str | None = None):
        rules.append(Rule(pattern, name, turn, slot))

    def dense(theirs: str, ours: str, turn=_linear):
        add(theirs + "/kernel", ours + ".weight", turn)
        add(theirs + "/bias", ours + ".bias")

    def norm(theirs: str, ours: str):
        add(theirs + "/scale", ours + ".weight")
        add(theirs + "/bias", ours + ".bias")

    def renamed(function, theirs: str, ours: str, names: Mapping[str, str]):
        for a, b in names.items():
            function(theirs + a, ours + b)

    # EVA-02
    eva, block = "git_backbone", r"git_backbone/blocks\.(\d+)"
    dense(rf"{eva}/patch_embed\.proj", "semantic.patch", _conv)
    add(rf"{eva}/cls_token", "semantic.cls")
    add(rf"{eva}/pos_embed", "semantic.position")
    norm(rf"{eva}/ln_post", "semantic.norm")
    mine = r"semantic.blocks.\1."
    add(rf"{block}/attn/q_bias", mine + "attention.query.bias")
    add(rf"{block}/attn/v_bias", mine + "attention.value.bias")
    renamed(dense, rf"{block}/", mine, {"attn/q_proj": "attention.query", "attn/k_proj": "attention.key",
            "attn/v_proj": "attention.value", "attn/proj": "attention.out",
            "mlp/w1": "mlp.gate", "mlp/w2": "mlp.up", "mlp/w3": "mlp.down"})
    renamed(norm, rf"{block}/", mine, {"norm1": "norm1", "norm2": "norm2", "mlp/ffn_ln": "mlp.norm"})

    # SAM's ViT
    sam, block, mine = "sam_backbone", r"sam_backbone/blocks\.(\d+)", r"spatial.blocks.\1."
    dense(rf"{sam}/patch_embed\.proj", "spatial.patch", _conv)
    add(rf"{sam}/pos_embed", "spatial.position", _map)
    renamed(dense, rf"{block}/", mine, {"attn/qkv": "attention.qkv", "attn/proj": "attention.out",
            "mlp/lin1": "mlp.0", "mlp/lin2": "mlp.2"})
    renamed(norm, rf"{block}/", mine, {"norm1": "norm1", "norm2": "norm2"})
    add(rf"{block}/attn/rel_pos_h", mine + "attention.relative_y")
    add(rf"{block}/attn/rel_pos_w", mine + "attention.relative_x")
    add(rf"{sam}/neck/([02])/kernel", r"spatial.neck.\1.weight", _conv)
    norm(rf"{sam}/neck/([13])", r"spatial.neck.\1")

    # SAM's prompt encoder
    add(r"prompt_encoder/point_embeddings\.(\d)\.weight", "prompt_encoder.kinds", _first, r"\1")
    add(r"prompt_encoder/not_a_point_embed\.weight", "prompt_encoder.no_point", _first)
    add(r"prompt_encoder/no_mask_embed\.weight", "prompt_encoder.no_mask", _first)
    add(r"prompt_encoder/pe_layer/positional_encoding_gaussian_matrix", "prompt_encoder.positions.frequencies")

    # Two-way transformers
    for theirs, ours in (("prompt_adapter", "prompt_features"), ("mask_adapter", "mask_adapter"),
                         ("mask_decoder", "mask_decoder")):
        layer, mine = rf"{theirs}/transformer/layers\.(\d+)/", rf"{ours}.transformer.blocks.\1."
        for a, b in (("self_attn", "self_attention"), ("cross_attn_token_to_image", "token_to_image"),
                     ("cross_attn_image_to_token", "image_to_token")):
            renamed(dense, layer + a, mine + b, {f"/{p}_proj": f".{p}" for p in ("q", "k", "v", "out")})
        renamed(norm, layer, mine, {f"norm{i}": f"norm{i}" for i in range(1, 5)})
        renamed(dense, layer, mine, {"mlp/lin1": "mlp.layers.0", "mlp/lin2": "mlp.layers.1"})
        renamed(dense, f"{theirs}/transformer/final_attn_token_to_image", f"{ours}.transformer.final_attention",
                {f"/{p}_proj": f".{p}" for p in ("q", "k", "v", "out")})
        norm(f"{theirs}/transformer/norm_final_attn", f"{ours}.transformer.final_norm")

    # Prompt feature extractor
    add(r"prompt_adapter/output_tokens\.weight", "prompt_features.queries")
    for a, b in (("prompt_embedding", "prompt"), ("image_pe", "position"), ("image", "image")):
        dense(rf"prompt_adapter/{a}_projection_mlp/layers\.0", f"prompt_features.{b}_projection")
    heads = r"prompt_adapter/output_hypernetworks_mlps\.(\d+)/layers\.0"
    add(heads + "/kernel", "prompt_features.heads", _linear, r"\1")
    add(heads + "/bias", "prompt_features.heads_bias", same, r"\1")
    for place in ("visual_project_layers", "textual"):
        dense(rf"{place}/visual_projection\.0", "visual_projection.0")
        norm(rf"{place}/visual_projection\.1", "visual_projection.1")

    # T5
    for half in ("encoder", "decoder"):
        theirs, ours = f"textual/t5_module/{half}", f"language.{half}"
        layer, mine = rf"{theirs}/layers_(\d+)/", rf"{ours}.\1."
        for a, b in (("attention", "attention"), ("self_attention", "attention"),
                     ("encoder_decoder_attention", "cross")):
            for part in ("query", "key", "value", "out"):
                add(f"{layer}{a}/{part}/kernel", f"{mine}{b}.{part}.weight", _linear)
                add(f"{layer}{a}/{part}/kernel_left_lora", f"{mine}{b}.{part}.lora_down", _linear)
                add(f"{layer}{a}/{part}/kernel_right_lora", f"{mine}{b}.{part}.lora_up", _linear)
        for a, b in (("pre_attention", "norm1"), ("pre_self_attention", "norm1"), ("pre_cross_attention", "norm2"),
                     ("pre_mlp", "norm3")):
            add(f"{layer}{a}_layer_norm/scale", f"{mine}{b}.weight")
        for a, b in (("wi_0", "gate"), ("wi_1", "up"), ("wo", "down")):
            add(f"{layer}mlp/{a}/kernel", f"{mine}mlp.{b}.weight", _linear)
        add(f"{theirs}/relpos_bias/rel_embedding", f"{ours}_bias.table.weight", _linear)
        add(f"{theirs}/{half}_norm/scale", f"{ours}_norm.weight")
    add("textual/t5_module/token_embedder/embedding", "language.embedding.weight")
    add("textual/t5_module/decoder/logits_dense/kernel", "language.logits.weight", _linear)

    # The small text decoder
    add("textual/embedding/words/embedding", "language.embedding.weight")
    add("textual/embedding/positions/embedding", "language.position.weight")
    norm("textual/embedding/layer_norm", "language.norm")
    dense("textual/output", "language.logits")
    layer, mine = r"textual/transformer/encoder/layer\.(\d+)/", r"language.layers.\1."
    renamed(dense, layer, mine, {"attention/self/query": "query", "attention/self/key": "key",
            "attention/self/value": "value", "attention/output/dense": "out", "intermediate/dense": "mlp.0",
            "output/dense": "mlp.2"})
    renamed(norm, layer, mine, {"attention/output/LayerNorm": "norm1", "output/LayerNorm": "norm2"})

    # Location head, mask adapter, mask decoder
    norm("point_predictor/LayerNorm_0", "location_head.norm")
    dense(r"point_predictor/mlp/layers\.(\d)", r"location_head.mlp.layers.\1")
    add(r"mask_adapter/output_tokens\.weight", "mask_adapter.queries")
    add(r"mask_adapter/alpha_output\.weight", "mask_adapter.gate")
    for a, b in (("visual", "visual"), ("textual", "words")):
        norm(f"mask_adapter/{a}_projection_mlp/LayerNorm_0", f"mask_adapter.{b}.0")
        dense(rf"mask_adapter/{a}_projection_mlp/layers\.0", f"mask_adapter.{b}.1")
    add(r"mask_decoder/iou_token\.weight", "mask_decoder.head.quality_token")
    add(r"mask_decoder/mask_tokens\.weight", "mask_decoder.head.mask_tokens")
    dense("mask_decoder/output_upscaling/([03])", r"mask_decoder.upscaling.\1", _up_transposed)
    norm("mask_decoder/output_upscaling/1", "mask_decoder.upscaling.1")
    dense(r"mask_decoder/output_hypernetworks_mlps\.(\d)/layers\.(\d)",
          r"mask_decoder.head.hypernetworks.\1.layers.\2")
    dense(r"mask_decoder/iou_prediction_head/layers\.(\d)", r"mask_decoder.head.quality.layers.\1")

    # Detector
    dense(r"box_decoder/fpn/simfp_3\.0", "detector.pyramid.up", _up)
    for i, (stage, first) in enumerate(((3, 1), (4, 0), (5, 1))):
        for j in range(2):
            name = rf"box_decoder/fpn/simfp_{stage}\.{first + j}"
            add(name + "/kernel", f"detector.pyramid.laterals.{i}.{2 * j}.weight", _conv)
            norm(name + r"\.norm", f"detector.pyramid.laterals.{i}.{2 * j + 1}")
    for i in range(2):
        dense(f"box_decoder/fpn/top_block/p{6 + i}", f"detector.pyramid.coarse.{i}", _conv)
    head = "box_decoder/proposal_generator"
    for i in range(0, 12, 3):
        dense(f"{head}/bbox_tower/{i}", f"detector.head.tower.{i}", _conv)
        norm(f"{head}/bbox_tower/{i + 1}", f"detector.head.tower.{i + 1}")
    dense(f"{head}/agn_hm", "detector.head.heat", _conv)
    dense(f"{head}/bbox_pred", "detector.head.box", _conv)
    add(rf"{head}/scales\.(\d)/scale", "detector.head.scales", _first, r"\1")
    second = r"box_decoder/roi_heads/box_head\.0/"
    renamed(dense, second, "detector.second.", {"fc1": "fc1", "fc2": "fc2", "cls_score": "score", "bbox_pred": "box"})
    return rules


REFERENCE = Layout(
    "PixelLLM's reference", r"^git_backbone/", _rules(),
    unused={
        r"prompt_adapter/dense_output_mlp/.*": "the image side of the extractor is thrown away",
        r"prompt_encoder/mask_downscaling/.*": "no task prompts with a mask",
    },
    fresh=("prompt_encoder.mask_branch.",),
    text=True,
)
"""The tree of `scenic/projects/pixel_llm`, with either language model."""

LAYOUTS = (REFERENCE, SAM, EVA02, FLAN_T5)
PRETRAINED = {"semantic": "EVA-02", "spatial": "SAM", "prompt_encoder": "SAM", "mask_decoder": "SAM", "language": "Flan-T5"}
"""Our parts that training does not start from scratch, and where they come from; the small text decoder does."""

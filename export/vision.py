"""Everything of the compact model but its language model, as ONNX graphs.

The wrappers here give the networks of `pixel_perception.models` the flat inputs and outputs of a bundle. Batch, targets,
regions and words are dynamic. Graphs are simplified by the exporter (onnxscript), renamed, checked, and compared
with torch by `pixel_perception.export.parity`.
"""

from __future__ import annotations

import onnx
import torch
from torch import Tensor, nn

from pixel_perception.export.torch_graph import torch_graph
from pixel_perception.models.compact import Compact
from pixel_perception.models.image_encoder import Features


class _ImageEncoder(nn.Module):
    def __init__(self, model: Compact):
        super().__init__()
        self.encoder = model.image_encoder

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(self.encoder(image))


class _Proposals(nn.Module):
    def __init__(self, model: Compact):
        super().__init__()
        self.proposals = model.proposals

    def forward(self, features_16: Tensor, features_8: Tensor) -> tuple[Tensor, Tensor]:
        return self.proposals(features_8)


class _PromptFeatures(nn.Module):
    def __init__(self, model: Compact):
        super().__init__()
        self.extractor = model.prompt_features

    def forward(self, features_16: Tensor, features_8: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        tokens, queries, _ = self.extractor(Features(features_16, features_8, features_8), boxes)
        return tokens, queries


class _TokenFusion(nn.Module):
    def __init__(self, model: Compact):
        super().__init__()
        self.fusion = model.token_fusion

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fusion(hidden_states)


class _PixelDecoder(nn.Module):
    def __init__(self, model: Compact):
        super().__init__()
        self.decoder = model.pixel_decoder

    def forward(
        self, features_16: Tensor, features_8: Tensor, mask_features: Tensor, queries: Tensor
    ) -> tuple[Tensor, Tensor]:
        decoded = self.decoder(Features(features_16, features_8, mask_features), queries)
        return decoded.mask, decoded.presence


class _LocationHead(nn.Module):
    def __init__(self, model: Compact):
        super().__init__()
        self.head = model.location_head

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.head(hidden_states)


def wrappers(
    model: Compact,
) -> dict[str, tuple[nn.Module, dict[str, Tensor], dict[str, dict[int, str]], tuple[str, ...]]]:
    """Graph name -> (module, example inputs by name, dynamic axes by input, output names)."""
    config = model.config
    image, hidden, dim = config.image, config.language.hidden, config.image.dim
    h, w = image.height, image.width
    f16, f8 = torch.randn(2, dim, h // 16, w // 16), torch.randn(2, dim, h // 8, w // 8)
    mask = torch.randn(2, image.mask_channels, h // 4, w // 4)
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.1, 0.2, 0.4, 0.5], [0.3, 0.3, 0.9, 0.8]]).expand(2, 3, 4)
    batch = {0: "batch"}
    pyramid = {"features_16": f16, "features_8": f8}
    return {
        "image_encoder": (
            _ImageEncoder(model), {"image": torch.randint(0, 256, (2, h, w, 3), dtype=torch.uint8)}, {"image": batch},
            ("features_16", "features_8", "mask_features"),
        ),
        "proposals": (_Proposals(model), pyramid, {"features_16": batch, "features_8": batch}, ("boxes", "scores")),
        "prompt_feature_extractor": (
            _PromptFeatures(model), pyramid | {"boxes": boxes.contiguous()},
            {"features_16": batch, "features_8": batch, "boxes": {0: "batch", 1: "regions"}}, ("visual_tokens", "object_queries"),
        ),
        "token_fusion": (
            _TokenFusion(model), {"hidden_states": torch.randn(3, config.codebook.size, hidden)}, {"hidden_states": {0: "targets"}},
            ("queries",),
        ),
        "pixel_decoder": (
            _PixelDecoder(model),
            pyramid | {"mask_features": mask, "queries": torch.randn(2, 3, config.codebook.levels, dim)},
            {"features_16": batch, "features_8": batch, "mask_features": batch, "queries": {0: "batch", 1: "targets"}},
            ("mask_logits", "presence"),
        ),
        "location_head": (_LocationHead(model), {"hidden_states": torch.randn(3, hidden)}, {"hidden_states": {0: "words"}}, ("points",)),
    }  # fmt: skip


def export_vision(model: Compact) -> dict[str, onnx.ModelProto]:
    """Graphs by name, fp32. `model` is left as it is; its `language` is not needed."""
    training = model.training
    model.eval()
    try:
        return {name: torch_graph(*parts) for name, parts in wrappers(model).items()}
    finally:
        model.train(training)

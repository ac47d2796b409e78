"""What learns in each stage of PixelLLM's training (section 5.1; papers_spec B.8)."""

from pixel_perception.models.pixelllm.model import PixelLLM
from pixel_perception.models.pixelllm.t5 import T5

STAGES = ("trace", "referring", "segmentation", "dense_captioning")
"""Words with places; boxes of expressions; their masks; all objects with captions."""


def prepare(model: PixelLLM, stage: str) -> list[str]:
    """Freeze what the stage keeps, unfreeze the rest, and return the names that learn.

    SAM's three parts never learn; T5 only learns its LoRA, the small text decoder all of itself. The segmentation
    stage learns nothing but the location head and the mask adapter.

    Raises:
        ValueError: for a stage that does not exist, or one whose part the model lacks.
    """
    if stage not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}, not {stage!r}")
    needed = {"segmentation": "mask_adapter", "dense_captioning": "detector"}.get(stage, "location_head")
    if getattr(model, needed) is None:
        raise ValueError(f"stage {stage!r} trains the {needed}, which this model was built without")
    learning = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_learns(model, name, stage))
        if parameter.requires_grad:
            learning.append(name)
    return learning


def _learns(model: PixelLLM, name: str, stage: str) -> bool:
    part = name.split(".", 1)[0]
    if stage == "segmentation":
        return part in ("location_head", "mask_adapter")
    if part in ("spatial", "prompt_encoder", "mask_decoder", "mask_adapter"):
        return False
    if part == "detector":
        return stage == "dense_captioning"
    if part == "location_head":
        return stage != "dense_captioning"  # captions of proposals have no traces
    if part == "language" and isinstance(model.language, T5):
        return ".lora_" in name
    return True

"""The language model of the compact network: a frozen Llama with LoRA, codebook rows and their output columns."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from pixel_perception.models.config import CompactConfig


class Language(nn.Module):
    """Embeddings in, hidden states out.

    The vocabulary is the base's, then the codebook tokens SEG0.. and ALL. Only SEG0 and ALL are ever predicted (the
    rest of a group follows from its first token), so only these two have output columns.
    """

    def __init__(self, base: nn.Module, config: CompactConfig):
        """`base`: a transformers LlamaModel whose embedding table is also its output head."""
        super().__init__()
        language = config.language
        lora = LoraConfig(r=language.lora_rank, lora_alpha=language.lora_alpha, target_modules=list(language.lora_modules))
        base.requires_grad_(False)
        self.base = inject_adapter_in_model(lora, base)
        for name, parameter in self.base.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
                parameter.requires_grad_(True)
        self.first_added = language.vocabulary
        rows = config.codebook.size + 1
        typical = base.get_input_embeddings().weight.detach().float().std()
        self.added = nn.Parameter(torch.randn(rows, language.hidden) * typical)
        self.output = nn.Parameter(torch.randn(2, language.hidden) * 0.02)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (...) of the whole vocabulary -> float32 embeddings (..., hidden)."""
        base = self.base.get_input_embeddings()(ids.clamp(max=self.first_added - 1)).float()
        added = self.added[(ids - self.first_added).clamp(0, len(self.added) - 1)]
        return torch.where((ids >= self.first_added)[..., None], added, base)

    def forward(self, embeddings: Tensor, positions: Tensor, allowed: Tensor) -> Tensor:
        """embeddings (B, S, hidden), positions (B, S), allowed (B, S, S) bool: may query i see key j -> states (B, S, hidden)
        after the final norm, float32."""
        dtype = self.base.dtype
        mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)
        out = self.base(inputs_embeds=embeddings.to(dtype), position_ids=positions, attention_mask=mask[:, None], use_cache=False)
        return out.last_hidden_state.float()

    def logits(self, states: Tensor) -> Tensor:
        """states (..., hidden) -> logits over the base vocabulary, then SEG0 and ALL."""
        table = self.base.get_input_embeddings().weight
        return torch.cat([F.linear(states.to(table.dtype), table).float(), F.linear(states, self.output)], -1)

    def lora_state(self) -> dict[str, Tensor]:
        """`lora.{layer}.{module}.A` (rank, inputs) and `.B` (outputs, rank), module being q, k, v, o, gate, up or down."""
        found = {}
        for name, parameter in self.base.named_parameters():
            if "lora_" not in name:
                continue
            layer, module = name.split("layers.")[1].split(".")[0], name.split(".lora_")[0].rsplit(".", 1)[1]
            factor = "A" if "lora_A" in name else "B"
            found[f"lora.{layer}.{module.removesuffix('_proj')}.{factor}"] = parameter.detach()
        return found

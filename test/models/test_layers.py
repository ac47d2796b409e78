"""Attention as the papers write it, with keys and values of every position of the memory, against the order it is computed in."""

import pytest
import torch
import torch.nn.functional as F

from pixel_perception.models.layers import AttentionBlock

ROWS, POSITIONS, DIM = 3, 50, 16


@pytest.mark.parametrize("steered", [False, True])
def test_memory_is_attended_to_as_by_keys_and_values(steered):
    torch.manual_seed(0)
    block = AttentionBlock(DIM)
    x, memory = torch.randn(2, ROWS, DIM), torch.randn(2, POSITIONS, DIM)
    bias = torch.randn(2, ROWS, POSITIONS) if steered else None

    y = block.norm_attention(x)
    query, key, value = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in (block.query(y), block.key(memory), block.value(memory)))
    attended = F.scaled_dot_product_attention(query, key, value, bias[:, None] if steered else None).transpose(1, 2).flatten(2)
    wanted = x + block.out(attended)
    wanted = wanted + block.mlp(block.norm_mlp(wanted))

    found = block(x, memory, bias)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    found.sum().backward()  # every parameter takes part: several processes that train together wait for each of them
    assert all(p.grad is not None for p in block.parameters())
    torch.testing.assert_close(block(x), block(x, block.norm_attention(x)), rtol=1e-5, atol=1e-5)

"""PixelLLM's side of the runtime, as far as it needs no graph; test/export/test_pixelllm_bundle.py asks a whole model."""

import numpy as np
import pytest
import torch

from pixel_perception.models.pixelllm.boxes import nms
from pixel_perception.runtime.pixelllm import distinct


@pytest.mark.parametrize("overlap", [0.9, 0.5])
def test_suppression_is_that_of_the_network(overlap):
    rng = np.random.default_rng(3)
    corners = rng.uniform(-20, 100, (300, 2))
    boxes = np.concatenate((corners, corners + rng.uniform(-5, 60, (300, 2))), 1).astype(np.float32)
    boxes[::7] = boxes[1] + rng.normal(0, 0.5, (43, 4))  # many that nearly coincide
    boxes[5] = boxes[4]
    boxes[10:14] = [[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 5], [-9, -9, -1, 0]]  # overlap of exactly 0.9 and 0.5; outside
    scores = np.sort(rng.random(300).astype(np.float32))[::-1]
    kept = distinct(boxes, scores, overlap)
    assert kept.tolist() == nms(torch.from_numpy(boxes), overlap).tolist()
    assert 10 in kept and (11 not in kept) and 13 not in kept
    assert distinct(boxes[:0], scores[:0], overlap).tolist() == []

"""Platt scaling recovers a known distortion and evens the odds."""

import torch

from pixel_perception.training.calibrate import expected_calibration_error, platt


def test_platt_undoes_a_known_distortion():
    generator = torch.Generator().manual_seed(0)
    true = 3 * torch.randn(20000, generator=generator)
    there = torch.rand(20000, generator=generator) < true.sigmoid()
    scale, offset = platt(true / 2 + 1, there)  # symmetric odds: nothing to even out
    assert abs(scale - 2) < 0.1 and abs(offset + 2) < 0.15


def test_calibration_error_of_perfect_and_of_overconfident_scores():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(50000, generator=generator)
    there = torch.rand(50000, generator=generator) < scores
    assert expected_calibration_error(scores, there) < 0.01
    assert expected_calibration_error((scores > 0.5).float(), there) > 0.2

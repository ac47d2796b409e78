"""Losses against values worked out by hand."""

import math

import pytest
import torch

from pixel_perception.models import losses


def masks(*rows):
    """Masks of one row of pixels each."""
    return torch.tensor(rows, dtype=torch.float32)[:, None]


def test_cross_entropy_ignores_and_smooths():
    logits = torch.tensor([[[0.0, math.log(3.0)], [5.0, -5.0]]])
    labels = torch.tensor([[1, losses.IGNORE]])
    assert losses.text_cross_entropy(logits, labels).item() == pytest.approx(-math.log(0.75))
    smoothed = -0.9 * math.log(0.75) - 0.1 * math.log(0.25)
    assert losses.text_cross_entropy(logits, labels, 0.1).item() == pytest.approx(smoothed)


def test_cross_entropy_shifts_by_one_and_survives_no_labels():
    logits = torch.randn(1, 3, 4, requires_grad=True)
    labels = torch.tensor([[losses.IGNORE, 2, 1]])
    expected = losses.text_cross_entropy(logits[:, :2], torch.tensor([[2, 1]]))
    assert torch.equal(losses.next_token_loss(logits, labels), expected)
    nothing = losses.next_token_loss(logits, torch.full((1, 3), losses.IGNORE))
    nothing.backward()
    assert nothing.item() == 0 and logits.grad.abs().sum() == 0


def test_bce_and_dice():
    logits, targets = masks([0.0, 0.0]), masks([1, 0])
    assert losses.mask_bce(logits, targets).tolist() == pytest.approx([math.log(2)])
    assert losses.mask_dice(logits, targets, smooth=1.0).tolist() == pytest.approx([1 - 2 / 3])


def test_refinement_weighs_only_where_targets_meet():
    logits = masks([5.0, 5.0, -5.0, -5.0], [5.0, -5.0, -5.0, 5.0])
    assert losses.refinement_map(logits, 3.0)[:, 0].tolist() == [[3, 1, 1, 1], [3, 1, 1, 1]]
    apart = losses.refinement_map(logits, 3.0, groups=torch.tensor([0, 1]))
    assert apart.eq(1).all()
    targets = masks([1, 1, 0, 0], [0, 0, 0, 1])
    whole = losses.mask_bce(logits, targets) + losses.overlap_bce(logits, targets)
    assert torch.allclose(losses.refined_bce(logits, targets, 2.0), whole)
    assert torch.equal(losses.refined_bce(logits, targets, 1.0), losses.mask_bce(logits, targets))


def test_focal_is_bce_without_focus():
    logits, targets = torch.randn(2, 3, 4), (torch.rand(2, 3, 4) > 0.5).float()
    assert torch.allclose(losses.mask_focal(logits, targets, -1, 0), losses.mask_bce(logits, targets))
    one = losses.mask_focal(masks([0.0]), masks([1.0]))
    assert one.tolist() == pytest.approx([0.25 * 0.25 * math.log(2)])


def test_quality_against_true_overlap():
    logits, targets = masks([1.0, 1.0, -1.0]), masks([1, 0, 1])
    assert losses.quality_mse(torch.tensor([0.5]), logits, targets).tolist() == pytest.approx([(0.5 - 1 / 3) ** 2])


def test_points_in_pixels_of_valid_tokens():
    points = torch.zeros(1, 2, 2, 2)
    targets = torch.tensor([[[[2.0, 4.0], [6.0, 8.0]], [[100.0] * 2] * 2]])
    assert losses.points_l1(points, targets, torch.tensor([[True, False]])).item() == 5
    assert losses.points_l1(points, targets, torch.tensor([[False, False]])).item() == 0


def test_every_mask_counts_the_same():
    parts = [torch.tensor([1.0]), torch.tensor([]), torch.tensor([3.0, 5.0])]
    assert losses.mean_over_masks(parts, torch.zeros(1)).item() == 3
    assert losses.mean_over_masks([], torch.ones(2)).item() == 0


def test_matching_finds_the_crossed_pairs():
    targets = masks([1, 1, 0, 0], [0, 0, 1, 1])
    logits = masks([-5.0, -5, 5, 5], [0, 0, 0, 0], [5, 5, -5, -5])
    assert losses.match_masks(logits, targets) == ([0, 2], [1, 0])


def test_matching_costs_equal_the_losses():
    logits, targets = torch.randn(3, 4, 5), (torch.rand(3, 4, 5) > 0.5).float()
    bce, dice = losses.matching_costs(logits, targets)
    assert torch.allclose(bce.diagonal(), losses.mask_bce(logits, targets), atol=1e-6)
    assert torch.allclose(dice.diagonal(), losses.mask_dice(logits, targets, smooth=1.0), atol=1e-6)

"""Learning rates over a run and between the parts of a network."""

import pytest
from torch import nn

from pixel_perception.models.configurations import configuration
from pixel_perception.models.perception_model import PerceptionModel
from pixel_perception.training.config import ConfigError, Optimiser, Schedule
from pixel_perception.training.schedule import factor, groups


def rates(schedule, steps):
    return [factor(schedule, step, step / steps) for step in range(steps + 1)]


def test_linear_rises_to_one_and_falls_to_zero_from_there():
    found = rates(Schedule(steps=10, warmup=4, decay="linear"), 10)
    assert found[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0]) and found[7] == pytest.approx(0.5) and found[10] == 0


def test_cosine_covers_the_budget_and_ends_at_its_floor():
    found = rates(Schedule(steps=100, warmup=1, decay="cosine", floor=0.1), 100)
    assert found[0] == pytest.approx(1.0) and found[50] == pytest.approx(0.55) and found[100] == pytest.approx(0.1)
    assert rates(Schedule(minutes=5, decay="none"), 3) == [1.0] * 4


def test_rates_differ_by_part_and_by_depth_of_eva():
    model = PerceptionModel.of(configuration("pixelllm-tiny"))
    wanted = Optimiser(rate=1.0, weight_decay=0.1, factors={"mask_adapter": 10.0}, layer_decay=0.5)
    of = {id(p): (g["base"], g["weight_decay"]) for g in groups(model, wanted) for p in g["params"]}
    named = {name: of[id(p)] for name, p in model.named_parameters()}
    assert named["mask_adapter.queries"] == (10.0, 0.1) and named["location_head.mlp.layers.0.weight"] == (1.0, 0.1)
    assert named["semantic.blocks.1.mlp.down.weight"] == (1.0, 0.1) and named["semantic.blocks.0.mlp.down.weight"] == (0.5, 0.1)
    assert named["semantic.patch.weight"] == (0.25, 0.1) and named["semantic.norm.weight"] == (1.0, 0.0)
    assert len(of) == len(named)


def test_a_factor_without_parameters_is_named():
    with pytest.raises(ConfigError, match=r"optimiser.factors: no parameter that learns begins with 'neck'"):
        groups(nn.Linear(2, 2), Optimiser(factors={"neck": 2.0}))

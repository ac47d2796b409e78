"""Configurations by name and as JSON, and the networks that they build."""

import json
from dataclasses import replace

import pytest
import torch

from pixel_perception.models.configurations import CONFIGURATIONS, ConfigurationError, configuration, from_dict, read, to_dict, write
from pixel_perception.models.perception_model import PerceptionModel

MILLIONS = {"compact": 5.29, "pixellm-7b": 7140, "pixellm-13b": 13470, "pixellm-tiny": 0.353, "pixelllm-t5xl": 3886,
            "pixelllm-t5xl-paper": 3849, "pixelllm-small": 1106, "pixelllm-tiny": 28.4, "pixelllm-small-tiny": 28.4}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_configuration_survives_json_and_builds_without_memory(name, tmp_path):
    config = configuration(name)
    write(config, tmp_path / "model.json")
    assert read(tmp_path / "model.json") == config == from_dict(json.loads(json.dumps(to_dict(config))))
    with torch.device("meta"):
        model = PerceptionModel.of(config)
    assert model.config is config and model.device.type == "meta"
    assert sum(model.millions().values()) == pytest.approx(MILLIONS[name], rel=0.01)


def test_fields_that_are_not_given_keep_their_defaults():
    assert from_dict({"kind": "pixellm"}) == configuration("pixellm-7b")
    assert from_dict({"kind": "pixellm", "losses": {"alpha": 1}}).losses.alpha == 1.0
    without = replace(configuration("pixelllm-tiny"), detector=None)
    assert from_dict(to_dict(without)) == without


@pytest.mark.parametrize(("values", "message"), [
    ({"kind": "gpt"}, "configuration.kind: expected one of compact, .*, found 'gpt'"),
    ({}, "configuration.kind: .* found nothing"),
    ({"kind": "pixellm", "depth": 3}, "configuration.depth: no such field; expected one of vision, "),
    ({"kind": "pixellm", "codebook": {"first": "many"}}, "configuration.codebook.first: expected a whole number, found 'many'"),
    ({"kind": "pixellm", "codebook": {}}, "configuration.codebook.first: is missing"),
    ({"kind": "pixellm", "codebook": {"first": 0, "levels": 3}}, "must agree"),
    ({"kind": "pixellm", "codebook": 3}, "configuration.codebook: expected fields with values, found 3"),
    ({"kind": "pixellm", "vision": {"levels": 3}}, "configuration.vision.levels: expected a list, found 3"),
    ({"kind": "pixelllm", "language": {"kind": "pixellm"}}, "configuration.language.kind: expected one of t5, text_decoder, found"),
])  # fmt: skip
def test_mistakes_name_the_field(values, message):
    with pytest.raises(ConfigurationError, match=message):
        from_dict(values)


def test_unknown_names_and_broken_files_are_one_sentence(tmp_path):
    with pytest.raises(ConfigurationError, match="expected one of compact, pixellm-7b, .*, found 'pixellm-70b'"):
        configuration("pixellm-70b")
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(ConfigurationError, match="model.json: expected JSON"):
        read(tmp_path / "model.json")
    with pytest.raises(TypeError, match="expected one of CompactConfig"):
        PerceptionModel.of({"kind": "compact"})

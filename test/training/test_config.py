"""Configurations are read strictly: every mistake is one sentence that names the file and the field."""

from pathlib import Path

import pytest

from pixel_perception.models.configurations import configuration
from pixel_perception.training.config import ConfigError, parse, read
from pixel_perception.training.course import find_config
from pixel_perception.training.tasks.mixture import PIXELLM, spread
from pixel_perception.training.tasks.registry import find

HOME = Path(__file__).parents[2] / "config" / "train"
TINY = {"pixellm": {"model": "pixellm-tiny", "learns": ["decoder"]}, "data": {"refcoco": 1}, "schedule": {"steps": 5},
        "optimiser": {"rate": 1e-3}}  # fmt: skip


@pytest.mark.parametrize("path", sorted(HOME.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_of_the_project_is_sound(path):
    config = find_config(path.stem)
    assert config == path
    config = read(config)
    assert parse(config.to_dict(), "again") == config
    assert all(find(name).name == name for name in config.data)
    for section in (config.pixellm, config.pixelllm):
        if section is not None:
            assert configuration(section.model)


def test_the_papers_figures():
    pixellm, released = read(HOME / "pixellm-7b.yaml"), read(HOME / "pixellm-7b-released.yaml")
    assert (pixellm.batch.total, pixellm.schedule.steps, pixellm.optimiser.rate, pixellm.lora.rank) == (160, 5000, 3e-4, 8)
    assert (pixellm.pixellm.refinement, released.pixellm.refinement) == (2.0, 1.0)
    assert pixellm.data == spread(PIXELLM)
    dense = read(HOME / "pixelllm-t5xl-dense_captioning.yaml")
    assert (dense.optimiser.layer_decay, dense.optimiser.weight_decay, dense.pixelllm.scale) == (0.8, 0.05, (0.1, 2.0))
    assert read(HOME / "pixelllm-small-segmentation.yaml").optimiser.factors == {"mask_adapter": 10.0}


@pytest.mark.parametrize(("change", "complaint"), [
    ({"batches": {}}, "batches: no such field"),
    ({"batch": {"size": 2}}, "batch.size: no such field; expected one of total, micro"),
    ({"batch": {"total": "two"}}, "batch.total: expected a whole number, found 'two'"),
    ({"batch": {"micro": 0}}, "batch.micro: expected 1 or more"),
    ({"optimiser": {"rate": True}}, "optimiser.rate: expected a number, found True"),
    ({"optimiser": {"rate": -1.0}}, "optimiser.rate: expected"),
    ({"optimiser": {"betas": [0.9]}}, "optimiser.betas: expected a list of 2"),
    ({"schedule": {}}, "expected either steps or minutes, found neither"),
    ({"schedule": {"steps": 1, "minutes": 2.0}}, "expected either steps or minutes, found both"),
    ({"schedule": {"steps": 1, "decay": "square"}}, "schedule.decay: expected one of cosine, linear, none, found 'square'"),
    ({"memory": {"shard": "yes"}}, "memory.shard: expected true or false"),
    ({"data": {}}, "data: expected weights by data set"),
    ({"data": {"refcoco": -1}}, "data: expected weights of 0 or more"),
    ({"pixelllm": {"stage": "trace"}}, "found pixellm and pixelllm"),
    ({"pixellm": None}, "expected one of the sections"),
    ({"pixellm": None, "pixelllm": {"stage": "paint"}}, "pixelllm.stage: expected one of trace"),
    ({"pixellm": None, "pixelllm": {"stage": "trace"}, "lora": {}}, "lora: expected this section with pixellm only"),
])  # fmt: skip
def test_mistakes_are_named(change, complaint):
    with pytest.raises(ConfigError) as error:
        parse({**TINY, **change}, "some.yaml")
    assert str(error.value).startswith("some.yaml: ") and complaint in str(error.value)


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(ConfigError, match=r"optimiser: is missing"):
        parse({k: v for k, v in TINY.items() if k != "optimiser"}, "some.yaml")
    with pytest.raises(ConfigError, match="No such file"):
        read(tmp_path / "absent.yaml")
    (tmp_path / "bad.yaml").write_text("batch: [1")
    with pytest.raises(ConfigError, match=r"bad.yaml: expected YAML"):
        read(tmp_path / "bad.yaml")
    with pytest.raises(ConfigError, match="expected a YAML file or one of compact-language"):
        find_config("compakt")


def test_overrides():
    path = HOME / "pixellm-7b.yaml"
    config = read(path, ["optimiser.rate=1e-5", "data.muse=0", "memory.shard=false", "start=some/folder", "pixellm.frozen=[neck]"])
    assert (config.optimiser.rate, config.data["muse"], config.memory.shard, config.start) == (1e-5, 0.0, False, "some/folder")
    assert config.pixellm.frozen == ("neck",) and config.data["refcoco"] == 2.25
    for override, complaint in {"rate": "expected key=value", "batch.micro=x": "batch.micro: expected a whole number",
                                "optimiser.speed=1": "optimiser.speed: no such field", "seed.x=1": "seed is a value"}.items():  # fmt: skip
        with pytest.raises(ConfigError, match=complaint):
            read(path, ["seed=0", override])


@pytest.mark.parametrize(("written", "rate"), [("1e-4", 1e-4), ("2.5e3", 2500.0), (".5e1", 5.0), ("1.e-2", 0.01), ("3", 3.0)])
def test_numbers_without_point_or_sign_are_numbers(written, rate):
    assert read(HOME / "pixellm-7b.yaml", [f"optimiser.rate={written}"]).optimiser.rate == rate

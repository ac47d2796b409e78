"""What the tests of exporting share: a PixelLLM, exported once."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def pixelllm_folder(tmp_path_factory):
    """The model folder of a PixelLLM with every part."""
    from pixelllm_on_the_spot import pixelllm
    from tokenizers_on_the_spot import write_tokenizer

    from pixel_perception.models import folder

    place, model = tmp_path_factory.mktemp("pixelllm"), pixelllm()
    return folder.save(model, place / "model", write_tokenizer(place / "words", model.config))


@pytest.fixture(scope="session")
def pixelllm_bundle(pixelllm_folder):
    """The same as a bundle that was compared with torch on three pictures: exporting takes most of a minute, so it is done once."""
    from pixelllm_on_the_spot import picture

    from pixel_perception.export.pixelllm_bundle import export_pixelllm
    from pixel_perception.export.pixellm_parity import Asked

    samples = [Asked(np.roll(picture(28), 28 * i, 1), text) for i, text in enumerate(("the red mug", "two cups", "yellow can"))]
    return export_pixelllm("tiny", pixelllm_folder, pixelllm_folder.with_name("bundle"), "fp32", samples, "few pictures", "mine")

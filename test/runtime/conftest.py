import numpy as np
import pytest

from pixel_perception.export.tiny import write_tiny_bundle
from pixel_perception.perception import Perception

RED, YELLOW = (200, 30, 30), (220, 200, 40)
MUGS, BANANA = ((70, 100, 170, 200), (100, 340, 190, 430)), (420, 250, 560, 370)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A bundle whose weights are set by hand: mugs are red, bananas yellow."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """A cache that tests share, where it does not matter who built what is in it."""
    return tmp_path_factory.mktemp("converted")


@pytest.fixture(scope="session")
def perception(tiny):
    return Perception.open(tiny.folder, threads=1)


def scene(shift=(0, 0)):
    """(480, 640, 3): two mugs and a banana on grey."""
    image = np.full((480, 640, 3), 90, np.uint8)
    for (x0, y0, x1, y1), colour in ((MUGS[0], RED), (MUGS[1], RED), (BANANA, YELLOW)):
        image[y0 + shift[1] : y1 + shift[1], x0 + shift[0] : x1 + shift[0]] = colour
    return image


@pytest.fixture
def image():
    return scene()


@pytest.fixture
def moved():
    """A function (dx, dy) -> the scene with everything moved by so many pixels."""
    return scene

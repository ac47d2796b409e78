"""Scenes render with true labels and depth; objects are boxes that the test writes itself."""

import json

import numpy as np
import pytest
from PIL import Image

from pixel_perception.simulation.catalog import AssetError, Catalog

CUBE = """v -1 -1 -1\nv 1 -1 -1\nv 1 1 -1\nv -1 1 -1\nv -1 -1 1\nv 1 -1 1\nv 1 1 1\nv -1 1 1
f 1 3 2\nf 1 4 3\nf 5 6 7\nf 5 7 8\nf 1 2 6\nf 1 6 5\nf 2 3 7\nf 2 7 6\nf 3 4 8\nf 3 8 7\nf 4 1 5\nf 4 5 8\n"""


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("assets")
    (folder / "surf").mkdir()
    Image.fromarray(np.full((16, 16, 3), 120, np.uint8)).save(folder / "surf" / "plain.png")
    rows = []
    for i, (noun, half) in enumerate([("block", 0.03), ("brick", 0.04), ("box", 0.05), ("die", 0.03), ("cube", 0.04)]):
        mesh = "\n".join(" ".join(["v", *(str(float(v) * half) for v in line.split()[1:])]) if line.startswith("v") else line
                         for line in CUBE.splitlines())  # fmt: skip
        (folder / f"{i}.obj").write_text(mesh)
        rows.append({"id": f"cube{i}", "category": noun, "color": "white", "mesh": f"{i}.obj", "paint": True, "lic": "test"})
    (folder / "catalog.json").write_text(json.dumps(rows))
    return folder


def table(assets, seed=0, size=(160, 120)):
    try:
        from pixel_perception.simulation.tabletop import Tabletop

        return Tabletop(Catalog.open(assets), seed, size)
    except (ImportError, AttributeError, RuntimeError, OSError) as error:
        pytest.skip(f"no off-screen OpenGL for MuJoCo: {error}")


def test_views_are_true_and_repeat_with_the_seed(assets):
    views = []
    for _ in range(2):
        scene = table(assets, 3)
        scene.settle(3)
        views.append(scene.view(scene.camera()))
        scene.close()
    first, again = views
    assert np.array_equal(first.labels, again.labels) and np.array_equal(first.rgb, again.rgb)
    assert len(first.objects) >= 2
    for thing in first.objects:
        ys, xs = np.nonzero(first.labels == thing.label)
        assert thing.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) and thing.area == len(xs)
    _check_depth(first)


def _check_depth(view):
    """Back-projected pixels of an object lie on the table, within its height."""
    thing = max(view.objects, key=lambda o: o.area)
    ys, xs = np.nonzero(view.labels == thing.label)
    z = view.depth[ys, xs]
    k = view.intrinsics
    camera = np.stack([(xs + 0.5 - k[0, 2]) / k[0, 0] * z, (ys + 0.5 - k[1, 2]) / k[1, 1] * z, z, np.ones_like(z)])
    height = (view.world_from_camera @ camera)[2]
    assert 0.74 < np.median(height) < 0.92
    x, y, _ = thing.position
    world = view.world_from_camera @ camera
    assert abs(np.median(world[0]) - x) < 0.08 and abs(np.median(world[1]) - y) < 0.08


def test_a_small_motion_keeps_most_of_the_view(assets):
    scene = table(assets, 4)
    scene.settle(4)
    camera = scene.camera()
    before = scene.view(camera, depth=False)
    after = scene.view(camera.moved(np.random.default_rng(0), 0.005, 0.5), depth=False)
    scene.close()
    assert (before.labels == after.labels).mean() > 0.9


def test_a_seed_of_another_block_is_refused(assets):
    scene = table(assets, 0)
    with pytest.raises(ValueError, match="seed 600 is not in this set's block"):
        scene.settle(600)
    scene.close()


def test_broken_assets_name_file_and_field(tmp_path, assets):
    with pytest.raises(AssetError, match="catalog.json: not found"):
        Catalog.open(tmp_path)
    (tmp_path / "catalog.json").write_text('[{"id": "a"}]')
    with pytest.raises(AssetError, match="entry 0 lacks the field 'category'"):
        Catalog.open(tmp_path)
    with pytest.raises(AssetError, match="no object with id 'nothing'"):
        Catalog.open(assets, {"nothing"})

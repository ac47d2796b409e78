"""Settled tabletop scenes rendered off-screen by MuJoCo, with instance masks, depth and camera.

Reproducible by seed: seeds are grouped in blocks of `SEEDS_PER_SET` that share one compiled set of objects and
textures (compiling is the slow part); layout, colours of tintable objects, light and cameras depend on the seed.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace

import numpy as np

from pixel_perception.simulation.catalog import PALETTE, Asset, Catalog
from pixel_perception.simulation.scene import SceneObject, View

os.environ.setdefault("MUJOCO_GL", "osmesa")  # must be set before mujoco is imported
import mujoco  # noqa: E402

SEEDS_PER_SET = 6
OBJECTS_PER_SET = 12
TABLE_HEIGHT = 0.75
MIN_AREA = 0.0012
"""Smallest visible part of the image (fraction of its pixels) that counts as seeing an object."""


@dataclass(frozen=True)
class Camera:
    """A pose around the table: angles in radians, distances in metres, `fov` vertical in degrees."""

    azimuth: float
    elevation: float
    distance: float
    roll: float
    fov: float
    target: np.ndarray
    shift: np.ndarray
    turn: np.ndarray

    def moved(self, rng: np.random.Generator, metres: float, degrees: float) -> Camera:
        """This camera after a small random motion of the given size."""
        u, w = rng.normal(size=3), rng.normal(size=3)
        return replace(self, shift=self.shift + metres * u / np.linalg.norm(u),
                       turn=self.turn + math.radians(degrees) * w / np.linalg.norm(w))

    def pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Rotation (3, 3; MuJoCo camera axes: x right, y up, z backward) and position (3,) in the world."""
        back = np.array([math.cos(self.azimuth) * math.cos(self.elevation),
                         math.sin(self.azimuth) * math.cos(self.elevation), math.sin(self.elevation)])
        right = np.cross([0, 0, 1], back)
        right /= np.linalg.norm(right)
        up = np.cross(back, right)
        c, s = math.cos(self.roll), math.sin(self.roll)
        rotation = np.stack([right * c + up * s, up * c - right * s, back], 1)
        position = self.target + self.distance * back + rotation @ self.shift
        angle = float(np.linalg.norm(self.turn))
        if angle > 0:
            x, y, z = self.turn / angle
            k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
            rotation = rotation @ (np.eye(3) + math.sin(angle) * k + (1 - math.cos(angle)) * k @ k)
        return rotation, position


class Tabletop:
    """A compiled set of objects from which scenes are settled and photographed.

    `settle(seed)` puts some of the objects on the table; `camera()` draws a view point; `view(camera)` renders it.
    """

    def __init__(self, catalog: Catalog, seed: int, size: tuple[int, int] = (640, 480), samples: int = 4):
        """`size` is (width, height); `samples` the anti-aliasing samples per pixel."""
        self.width, self.height = size
        rng = np.random.default_rng([seed // SEEDS_PER_SET, 1])
        count = min(OBJECTS_PER_SET, len(catalog.assets))
        self.assets = [catalog.assets[i] for i in rng.choice(len(catalog.assets), count, replace=False)]
        self.block = seed // SEEDS_PER_SET
        self.rng = rng
        self.tinted: list[bool] = []
        self.model = self._compile(catalog, samples)
        self.data = mujoco.MjData(self.model)
        m = self.model
        self.bodies = [m.body(f"o{i}").id for i in range(count)]
        self.geoms = [m.geom(f"o{i}").id for i in range(count)]
        self.qpos = [m.jnt_qposadr[m.body_jntadr[b]] for b in self.bodies]
        self.vertices = []
        for g in self.geoms:
            mesh = m.geom_dataid[g]
            start = m.mesh_vertadr[mesh]
            self.vertices.append(m.mesh_vert[start : start + m.mesh_vertnum[mesh]])
        self.radius = [float(np.linalg.norm(v, axis=1).max()) for v in self.vertices]
        self.contype, self.conaffinity = m.geom_contype.copy(), m.geom_conaffinity.copy()
        self.surfaces = [m.material(f"s{i}").id for i in range(6)]
        self.materials = [m.material(f"o{i}").id for i in range(count)]
        self.renderer = mujoco.Renderer(m, self.height, self.width)
        self.used: list[int] = []
        self.colors: list[str] = [a.color for a in self.assets]

    def close(self) -> None:
        """Free the off-screen rendering context."""
        self.renderer.close()

    def _compile(self, catalog: Catalog, samples: int) -> mujoco.MjModel:
        spec, rng = mujoco.MjSpec(), self.rng
        visual = spec.visual
        visual.global_.offwidth, visual.global_.offheight = self.width, self.height
        visual.quality.offsamples, visual.quality.shadowsize = samples, 1024
        spec.option.timestep = 0.005
        chosen = rng.choice(len(catalog.surfaces), 6, replace=len(catalog.surfaces) < 6)
        for i, k in enumerate(chosen):
            spec.add_texture(name=f"s{i}", type=mujoco.mjtTexture.mjTEXTURE_2D, file=catalog.surfaces[k])
            _textured(spec.add_material(name=f"s{i}", specular=rng.uniform(0, 0.4), shininess=rng.uniform(0, 0.6),
                                        reflectance=float(rng.random() < 0.25) * 0.08), f"s{i}")
        world, box = spec.worldbody, mujoco.mjtGeom.mjGEOM_BOX
        still = {"contype": 0, "conaffinity": 0}
        world.add_geom(name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[6, 6, 0.1], material="s0")
        world.add_geom(name="wall0", type=box, size=[0.05, 6, 3], pos=[1.8, 0, 2], material="s1", **still)
        world.add_geom(name="wall1", type=box, size=[6, 0.05, 3], pos=[0, 2.5, 2], material="s2", **still)
        world.add_geom(name="table", type=box, size=[0.6, 0.8, 0.02], pos=[0, 0, TABLE_HEIGHT - 0.02], material="s3")
        for x in (-0.5, 0.5):
            for y in (-0.65, 0.65):
                world.add_geom(type=box, size=[0.025, 0.025, 0.355], pos=[x, y, 0.355], material="s4")
        for i in range(3):
            kind = mujoco.mjtLightType.mjLIGHT_SPOT if i == 0 else mujoco.mjtLightType.mjLIGHT_DIRECTIONAL
            world.add_light(name=f"l{i}", pos=[0, 0, 2.5], dir=[0, 0, -1], castshadow=i < 1, type=kind, cutoff=70,
                            exponent=1)
        world.add_camera(name="camera", pos=[-1, 0, 1.5], fovy=50)
        for i, asset in enumerate(self.assets):
            self._add_object(spec, i, asset)
        return spec.compile()

    def _add_object(self, spec: mujoco.MjSpec, i: int, asset: Asset) -> None:
        rng, name = self.rng, f"o{i}"
        body = spec.worldbody.add_body(name=name, pos=[3 + i, 0, -5])
        body.add_freejoint()
        spec.add_mesh(name=name, file=asset.mesh, scale=[asset.scale] * 3, inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL)
        # One texture per set: a tintable object wears its grey one in two sets of three and takes a colour per scene.
        self.tinted.append(asset.always_tinted or (asset.tintable and rng.random() < 0.65))
        texture = asset.tint_texture if self.tinted[i] else asset.texture
        if texture:
            spec.add_texture(name=name, type=mujoco.mjtTexture.mjTEXTURE_2D, file=texture)
        _textured(spec.add_material(name=name, rgba=[1, 1, 1, 1], specular=rng.uniform(0.05, 0.5),
                                    shininess=rng.uniform(0.1, 0.7)), name if texture else "")
        solid = not asset.hulls  # without hulls the mesh itself collides
        contact = {"condim": 4, "friction": [0.9, 0.01, 0.002]}
        body.add_geom(name=name, type=mujoco.mjtGeom.mjGEOM_MESH, meshname=name, material=name, quat=asset.quaternion,
                      contype=int(solid), conaffinity=int(solid), mass=0.15 if solid else 0, group=0, **contact)
        for j, hull in enumerate(asset.hulls):
            spec.add_mesh(name=f"{name}c{j}", file=hull, inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_CONVEX)
            body.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname=f"{name}c{j}", group=3,
                          mass=0.15 / len(asset.hulls), **contact)

    def settle(self, seed: int, count: tuple[int, int] = (4, 8), seconds: float = 0.8) -> None:
        """Drop `count` (inclusive range) objects on the table and let them come to rest. `seed` must be of this set's block."""
        if seed // SEEDS_PER_SET != self.block:
            raise ValueError(f"seed {seed} is not in this set's block {self.block} (seeds {self.block * SEEDS_PER_SET} to "
                             f"{self.block * SEEDS_PER_SET + SEEDS_PER_SET - 1})")
        self.rng = rng = np.random.default_rng([seed, 2])
        m, d = self.model, self.data
        n = min(int(rng.integers(count[0], count[1] + 1)), len(self.assets))
        self.used = sorted(int(i) for i in rng.choice(len(self.assets), n, replace=False))
        self._paint(rng)
        mujoco.mj_resetData(m, d)
        active = np.zeros(m.nbody, bool)
        active[[self.bodies[i] for i in self.used]] = True
        for i, q in enumerate(self.qpos):
            d.qpos[q : q + 3] = [3 + i, 0, -5]  # unused objects wait far below the floor
        movable = m.geom_bodyid > 0
        m.geom_contype[movable] = (self.contype * active[m.geom_bodyid])[movable]
        m.geom_conaffinity[movable] = (self.conaffinity * active[m.geom_bodyid])[movable]
        m.body_gravcomp[:] = 0
        m.body_gravcomp[[b for b in self.bodies if not active[b]]] = 1
        self._place(rng)
        mujoco.mj_forward(m, d)
        for i in self.used:  # lower each object to just above the table
            g = self.geoms[i]
            lowest = (self.vertices[i] @ d.geom_xmat[g].reshape(3, 3).T + d.geom_xpos[g])[:, 2].min()
            d.qpos[self.qpos[i] + 2] -= lowest - (TABLE_HEIGHT + 0.007)
        for step in range(int(seconds / m.opt.timestep)):
            mujoco.mj_step(m, d)
            if step % 20 == 19:
                d.qvel[:] *= 0.6  # damp rolling, so that a short simulation comes to rest

    def _paint(self, rng: np.random.Generator) -> None:
        m = self.model
        names = list(PALETTE)
        for i, asset in enumerate(self.assets):
            self.colors[i] = str(rng.choice(names)) if self.tinted[i] else asset.color
            tint = PALETTE[self.colors[i]] if self.tinted[i] else (1, 1, 1)
            spread = rng.uniform(0.85, 1.1, 3) if self.tinted[i] else np.ones(3)
            m.mat_rgba[self.materials[i], :3] = np.clip(np.array(tint) * spread, 0, 1)
        m.mat_rgba[self.surfaces, :3] = np.clip(rng.uniform(0.5, 1, (6, 1)) + rng.normal(0, 0.08, (6, 3)), 0, 1)
        m.mat_texrepeat[self.surfaces] = rng.uniform(0.7, 3, (6, 1))

    def _place(self, rng: np.random.Generator) -> None:
        d = self.data
        placed: list[tuple[float, float, float]] = []
        spread = rng.uniform(0.45, 0.95)
        for i in self.used:
            for _ in range(80):
                x, y = rng.uniform(-0.27, 0.27) * spread, rng.uniform(-0.33, 0.33) * spread
                if all(math.hypot(x - a, y - b) > 0.72 * (self.radius[i] + r) for a, b, r in placed):
                    break
            placed.append((x, y, self.radius[i]))
            yaw = rng.uniform(0, 2 * math.pi)
            quaternion = np.array([math.cos(yaw / 2), 0, 0, math.sin(yaw / 2)])
            if rng.random() < 0.2:  # tumbled
                quaternion = rng.normal(size=4)
                quaternion /= np.linalg.norm(quaternion)
            q = self.qpos[i]
            d.qpos[q : q + 3] = [x, y, TABLE_HEIGHT + 0.01 + self.radius[i]]
            d.qpos[q + 3 : q + 7] = quaternion

    def camera(self) -> Camera:
        """Draw a view point (half of them look away from the walls) and light the scene anew."""
        r = self.rng
        azimuth = r.uniform(0, 2 * math.pi) if r.random() < 0.5 else math.pi + r.uniform(-0.9, 0.9)
        camera = Camera(azimuth, r.uniform(0.35, 1.35), r.uniform(0.5, 0.95), r.normal(0, 0.06), r.uniform(38, 58),
                        np.array([r.uniform(-0.08, 0.08), r.uniform(-0.1, 0.1), TABLE_HEIGHT + r.uniform(0, 0.06)]),
                        np.zeros(3), np.zeros(3))
        self._light(camera.target)
        return camera

    def _light(self, target: np.ndarray) -> None:
        r, m = self.rng, self.model
        head = m.vis.headlight
        head.ambient[:], head.diffuse[:], head.specular[:] = r.uniform(0.2, 0.5), r.uniform(0.1, 0.35), r.uniform(0, 0.2)
        for i in range(3):
            angle = r.uniform(0, 2 * math.pi)
            position = np.array([math.cos(angle) * r.uniform(0.2, 1.3), math.sin(angle) * r.uniform(0.2, 1.3), r.uniform(1.7, 2.8)])
            m.light_pos[i] = position
            m.light_dir[i] = (target - position) / np.linalg.norm(target - position)
            warmth = np.array([1, 1 + r.normal(0, 0.06), 1 + r.normal(0, 0.12)])
            m.light_diffuse[i] = np.clip(warmth * (r.uniform(0.35, 0.8) if i == 0 else r.uniform(0, 0.25)), 0, 1)
            m.light_specular[i] = r.uniform(0, 0.4)
            m.light_active[i] = i == 0 or r.random() < 0.6
        order = r.permutation(6)
        for j, name in enumerate(["floor", "wall0", "wall1", "table"]):
            m.geom_matid[m.geom(name).id] = self.surfaces[order[j]]

    def view(self, camera: Camera, depth: bool = True) -> View:
        """Photograph the settled scene; a sensor model adds exposure, blur and noise to the colours only."""
        m, d, renderer = self.model, self.data, self.renderer
        rotation, position = camera.pose()
        quaternion = np.zeros(4)
        mujoco.mju_mat2Quat(quaternion, rotation.flatten())
        m.cam_pos[0], m.cam_quat[0], m.cam_fovy[0] = position, quaternion, camera.fov
        mujoco.mj_forward(m, d)
        renderer.update_scene(d, "camera")
        rgb = renderer.render().copy()
        distance = None
        if depth:
            renderer.enable_depth_rendering()
            distance = renderer.render().copy()
            renderer.disable_depth_rendering()
        renderer.enable_segmentation_rendering()
        geoms = renderer.render()[..., 0].copy()
        renderer.disable_segmentation_rendering()
        labels, objects = self._visible(geoms)
        focal = 0.5 * self.height / math.tan(math.radians(camera.fov) / 2)
        intrinsics = np.array([[focal, 0, self.width / 2], [0, focal, self.height / 2], [0, 0, 1]])
        world = np.eye(4)
        world[:3, :3], world[:3, 3] = rotation @ np.diag([1, -1, -1]), position
        return View(_sensor(rgb, self.rng), labels, distance, intrinsics, world, objects)

    def _visible(self, geoms: np.ndarray) -> tuple[np.ndarray, tuple[SceneObject, ...]]:
        lut = np.zeros(self.model.ngeom + 1, np.uint8)
        lut[[self.geoms[i] + 1 for i in self.used]] = np.arange(1, len(self.used) + 1)
        found = lut[geoms + 1]
        area = np.bincount(found.ravel(), minlength=len(self.used) + 1)
        relabel = np.zeros(len(self.used) + 1, np.uint8)
        objects: list[SceneObject] = []
        for j, i in enumerate(self.used, start=1):
            if area[j] < MIN_AREA * found.size:
                continue
            ys, xs = np.flatnonzero((found == j).any(1)), np.flatnonzero((found == j).any(0))
            relabel[j], asset = len(objects) + 1, self.assets[i]
            objects.append(SceneObject(
                label=len(objects) + 1, id=asset.id, noun=asset.noun, color=self.colors[i], synonyms=asset.synonyms,
                box=(int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1), area=int(area[j]),
                position=tuple(round(float(v), 4) for v in self.data.geom_xpos[self.geoms[i]]),
            ))  # fmt: skip
        return relabel[found], tuple(objects)


def _textured(material, texture: str) -> None:
    slots = list(material.textures)
    slots[mujoco.mjtTextureRole.mjTEXROLE_RGB] = texture
    material.textures = slots


def _sensor(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Exposure, white balance, gamma, blur and noise of a cheap camera. rgb (H, W, 3) uint8 -> the same."""
    x = rgb.astype(np.float32) / 255
    x *= np.clip(rng.uniform(0.62, 0.98) / max(float(np.percentile(x, 95)), 0.05), 0.6, 2.2)
    x *= 1 + rng.normal(0, 0.035, 3).astype(np.float32)
    x = np.clip(x, 0, 1) ** rng.uniform(0.8, 1.15)
    if rng.random() < 0.5:
        a = rng.uniform(0.05, 0.22)
        x = (1 - 2 * a) * x + a * 0.5 * (np.roll(x, 1, 0) + np.roll(x, -1, 0) + np.roll(x, 1, 1) + np.roll(x, -1, 1))
    x += rng.normal(0, rng.uniform(0.002, 0.02), x.shape).astype(np.float32)
    return (np.clip(x, 0, 1) * 255).astype(np.uint8)

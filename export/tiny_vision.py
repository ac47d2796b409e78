"""Vision graphs of the tiny bundle: colours of pixels, and weights set by hand. See `pixel_perception.export.tiny`."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from pixel_perception.export.language_graph import IR_VERSION, OPSET, GraphWriter

COLOURS = 44
"""First of the three hidden axes on which a visual token carries the mean colour of its box."""
DIM, MASK = 128, 16
RED, YELLOW = (2.0, -1.5, -1.5), (0.6, 0.6, -1.2)
"""Weights of red, green and blue (0 to 1) whose sum exceeds `LEAST` for pixels of that colour."""
LEAST = 0.7
PRESENCE = 31
"""Query axis of level 0 that carries the presence logit."""
FLOAT, UINT8 = TensorProto.FLOAT, TensorProto.UINT8
FEATURES = (("features_16", FLOAT, ["batch", DIM, 18, 24]), ("features_8", FLOAT, ["batch", DIM, 36, 48]))


class _Vision(GraphWriter):
    """GraphWriter with names given automatically."""

    def op(self, kind: str, *inputs, outputs: int = 1, **attributes):
        """Add a node; inputs are names or arrays. Returns the name of its output, or a list of names."""
        names = [i if isinstance(i, str) else self.unique(np.asarray(i)) for i in inputs]
        results = [f"{kind}_{len(self.nodes)}_{k}" for k in range(outputs)]
        self.node(kind, names, results, **attributes)
        return results[0] if outputs == 1 else results

    def reshape(self, x: str, *dims: int) -> str:
        return self.op("Reshape", x, np.array(dims, np.int64))

    def cut(self, x: str, axis: int, start: int, end: int) -> str:
        return self.op("Slice", x, *(np.array([v], np.int64) for v in (start, end, axis)))

    def widen(self, x: str, channels: int, used: int) -> str:
        """Zero channels behind the `used` ones of a (B, used, h, w) map."""
        return self.op("Pad", x, np.array([0, 0, 0, 0, 0, channels - used, 0, 0], np.int64))

    def model(self, name: str, inputs: tuple, outputs: dict[str, tuple[str, list]]) -> onnx.ModelProto:
        """outputs: name -> (value to give that name, dimensions)."""
        for output, (value, _) in outputs.items():
            self.node("Identity", [value], [output])
        infos = [helper.make_tensor_value_info(*value) for value in inputs]
        results = [
            helper.make_tensor_value_info(output, FLOAT, dims) for output, (_, dims) in outputs.items()
        ]
        graph = helper.make_graph(self.nodes, name, infos, results, self.initializers)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def tiny_vision(hidden: int, done_axis: int, absent_axis: int) -> dict[str, onnx.ModelProto]:
    """Graphs by name. `done_axis` of a hidden state says that the target is yellow, not red; `absent_axis` that there is none."""
    return {
        "image_encoder": _image_encoder(), "proposals": _proposals(), "prompt_feature_extractor": _prompt_features(hidden),
        "token_fusion": _token_fusion(hidden, done_axis, absent_axis), "pixel_decoder": _pixel_decoder(),
        "location_head": _location_head(hidden),
    }  # fmt: skip


def _image_encoder() -> onnx.ModelProto:
    """Mean colours of cells. Mask features are red, green, blue, 1, x, y, x * x, y * y (x, y in 0..1), zeros."""
    g = _Vision()
    pixels = g.op("Cast", "image", to=FLOAT)
    rgb = g.op("Transpose", g.op("Div", pixels, np.float32(255)), perm=[0, 3, 1, 2])
    maps = {s: g.op("AveragePool", rgb, kernel_shape=[s, s], strides=[s, s]) for s in (4, 8, 16)}
    y, x = np.meshgrid((np.arange(72) + 0.5) / 72, (np.arange(96) + 0.5) / 96, indexing="ij")
    places = np.stack([np.ones_like(x), x, y, x * x, y * y])[None].astype(np.float32)
    zero = g.op("Mul", g.cut(maps[4], 1, 0, 1), np.float32(0))
    mask = g.op("Concat", maps[4], g.op("Add", zero, places), axis=1)
    outputs = {
        "features_16": (g.widen(maps[16], DIM, 3), FEATURES[0][2]),
        "features_8": (g.widen(maps[8], DIM, 3), FEATURES[1][2]),
        "mask_features": (g.widen(mask, MASK, 8), ["batch", MASK, 72, 96]),
    }
    return g.model("image_encoder", (("image", UINT8, ["batch", 288, 384, 3]),), outputs)


def _colourfulness(g: _Vision, features: str) -> str:
    """Largest of redness and yellowness, (B, 1, h, w)."""
    weights = np.array([RED, YELLOW], np.float32)[:, :, None, None]
    return g.op("ReduceMax", g.op("Conv", g.cut(features, 1, 0, 3), weights), np.array([1], np.int64))


def _proposals() -> onnx.ModelProto:
    """Peaks of colourfulness averaged over 9x9 cells of stride 8, as boxes of 72 x 72 pixels."""
    g = _Vision()
    level = g.op(
        "Clip",
        g.op("Sub", _colourfulness(g, "features_8"), np.float32(LEAST)),
        np.float32(0),
        np.float32(0.1),
    )
    level = g.op("AveragePool", level, kernel_shape=[9, 9], pads=[4] * 4, count_include_pad=1)
    level = g.op("AveragePool", level, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)
    # A flat top would count as many peaks: tilt it a little.
    tilt = 1 + 1e-4 * np.add.outer(np.arange(36) * 1.3, np.arange(48))
    level = g.op("Mul", level, tilt[None, None].astype(np.float32))
    peak = g.op("Equal", g.op("MaxPool", level, kernel_shape=[9, 9], pads=[4] * 4), level)
    heat = g.op("Mul", g.op("Mul", level, np.float32(9.9)), g.op("Cast", peak, to=FLOAT))
    scores, index = g.op("TopK", g.reshape(heat, 0, -1), np.array([12], np.int64), outputs=2, axis=1)
    y, x = np.meshgrid((np.arange(36) + 0.5) / 36, (np.arange(48) + 0.5) / 48, indexing="ij")
    boxes = np.stack([x - 36 / 384, y - 36 / 288, x + 36 / 384, y + 36 / 288], -1).reshape(-1, 4).clip(0, 1)
    chosen = g.op("Gather", boxes.astype(np.float32), index, axis=0)
    outputs = {"boxes": (chosen, ["batch", 12, 4]), "scores": (scores, ["batch", 12])}
    return g.model("proposals", FEATURES, outputs)


def _prompt_features(hidden: int) -> onnx.ModelProto:
    """Three equal tokens with the colour at the centre of a box, and a query for what has that colour near there."""
    g = _Vision()
    low, high = g.cut("boxes", 2, 0, 2), g.cut("boxes", 2, 2, 4)
    centre = g.op("Mul", g.op("Add", low, high), np.float32(0.5))  # (B, R, 2) x, y
    grid = g.op("Unsqueeze", g.op("Sub", g.op("Mul", centre, np.float32(2)), np.float32(1)), np.array([1], np.int64))
    sampled = g.op(
        "GridSample",
        g.cut("features_8", 1, 0, 3),
        grid,
        mode="linear",
        padding_mode="border",
        align_corners=0,
    )  # (B, 3, 1, R)
    colour = g.op("Transpose", g.op("Squeeze", sampled, np.array([2], np.int64)), perm=[0, 2, 1])  # (B, R, 3)
    into = np.zeros((3, hidden), np.float32)
    into[range(3), range(COLOURS, COLOURS + 3)] = 1
    constant = np.eye(1, hidden, dtype=np.float32)
    token = g.op("Add", g.op("MatMul", colour, into), constant)
    tokens = g.op("Tile", g.op("Unsqueeze", token, np.array([2], np.int64)), np.array([1, 1, 3, 1], np.int64))
    # Steepness 8 * (colour of a target - LEAST), plus -40 * (squared distance from the centre - 0.01).
    target = np.array([RED, YELLOW], np.float32)
    affinity = g.op("Softmax", g.op("Mul", g.op("MatMul", colour, target.T), np.float32(20)), axis=-1)
    wanted = g.op("Mul", g.op("MatMul", affinity, target), np.float32(8))  # (B, R, 3)
    squares = g.op("ReduceSum", g.op("Mul", centre, centre), np.array([2], np.int64), keepdims=1)
    offset = g.op("Sub", np.array([[[40 * 0.01 - 8 * LEAST]]], np.float32), g.op("Mul", squares, np.float32(40)))
    quadratic = g.op("Add", g.op("Mul", centre, np.float32(0)), np.array([[[-40, -40]]], np.float32))
    mask = g.op("Concat", wanted, offset, g.op("Mul", centre, np.float32(80)), quadratic, axis=2)  # (B, R, 8)
    level1 = g.op("Pad", mask, np.array([0, 0, 0, 0, 0, DIM - 8], np.int64))
    present = np.zeros((1, 1, DIM), np.float32)
    present[0, 0, PRESENCE] = 8
    level0 = g.op("Add", g.op("Mul", level1, np.float32(0)), present)
    axis = np.array([2], np.int64)
    queries = g.op("Concat", g.op("Unsqueeze", level0, axis), g.op("Unsqueeze", level1, axis), axis=2)
    outputs = {
        "visual_tokens": (tokens, ["batch", "regions", 3, hidden]),
        "object_queries": (queries, ["batch", "regions", 2, DIM]),
    }
    return g.model("prompt_feature_extractor", (*FEATURES, ("boxes", FLOAT, ["batch", "regions", 4])), outputs)


def _token_fusion(hidden: int, done: int, absent: int) -> onnx.ModelProto:
    """Reads the flags of the group's tokens: red or yellow, there or not."""
    g = _Vision()
    red, yellow = np.array([*RED, -LEAST]), np.array([*YELLOW, -LEAST])
    mask, presence = np.zeros((hidden, DIM), np.float32), np.zeros((hidden, DIM), np.float32)
    mask[0, :4], mask[done, :4] = 3 * red, 3 * (yellow - red)
    presence[0, PRESENCE], presence[absent, PRESENCE] = 2, -4
    levels = []
    for level, weight in enumerate((presence, mask)):
        states = g.op(
            "ReduceMean", g.cut("hidden_states", 1, 2 * level, 2 * level + 2), np.array([1], np.int64)
        )
        levels.append(g.op("MatMul", states, weight))
    queries = g.op("Concat", *levels, axis=1)
    return g.model(
        "token_fusion",
        (("hidden_states", FLOAT, ["targets", 4, hidden]),),
        {"queries": (queries, ["targets", 2, DIM])},
    )


def _pixel_decoder() -> onnx.ModelProto:
    """Mask = level-1 query times mask features; present where the query says so and some pixel agrees."""
    g = _Vision()
    level0, level1 = (g.op("Squeeze", g.cut("queries", 2, i, i + 1), np.array([2], np.int64)) for i in (0, 1))
    pixels = g.reshape("mask_features", 0, MASK, -1)
    logits = g.op("MatMul", g.cut(level1, 2, 0, MASK), pixels)  # (B, T, 72 * 96)
    best = g.op("ReduceMax", logits, np.array([2], np.int64), keepdims=0)
    wanted = g.op("Squeeze", g.cut(level0, 2, PRESENCE, PRESENCE + 1), np.array([2], np.int64))
    # Features at strides 16 and 8 are part of the interface; here they carry no weight.
    idle = [
        g.op("Mul", g.op("ReduceMean", name, np.array([1, 2, 3], np.int64), keepdims=0), np.float32(0))
        for name in ("features_16", "features_8")
    ]
    idle = g.op("Unsqueeze", g.op("Add", *idle), np.array([1], np.int64))
    presence = g.op("Add", g.op("Min", wanted, best), idle)
    inputs = (
        *FEATURES,
        ("mask_features", FLOAT, ["batch", MASK, 72, 96]),
        ("queries", FLOAT, ["batch", "targets", 2, DIM]),
    )
    outputs = {
        "mask_logits": (g.reshape(logits, 0, 0, 72, 96), ["batch", "targets", 72, 96]),
        "presence": (presence, ["batch", "targets"]),
    }
    return g.model("pixel_decoder", inputs, outputs)


def _location_head(hidden: int) -> onnx.ModelProto:
    """Points that differ from word to word; no more is promised."""
    g = _Vision()
    weight = np.random.default_rng(2).normal(scale=0.3, size=(hidden, 4)).astype(np.float32)
    weight[0] = 0
    raw = g.op("Sigmoid", g.op("MatMul", "hidden_states", weight))
    half = g.op("Mul", raw, np.float32(0.5))
    points = g.op("Concat", g.cut(half, 1, 0, 2), g.op("Add", g.cut(half, 1, 2, 4), np.float32(0.5)), axis=1)
    return g.model(
        "location_head", (("hidden_states", FLOAT, ["words", hidden]),), {"points": (points, ["words", 4])}
    )

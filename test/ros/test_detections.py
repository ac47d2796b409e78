"""The same objects as vision_msgs, where that package is installed."""

from __future__ import annotations

import pytest

vision_msgs = pytest.importorskip("vision_msgs.msg", reason="vision_msgs is not installed")


def test_detections_say_what_the_perception_says(running):
    found = {"detections": [], "detections_3d": []}
    kinds = {"detections": vision_msgs.Detection2DArray, "detections_3d": vision_msgs.Detection3DArray}
    for name, kind in kinds.items():
        running.node.create_subscription(kind, f"perception/{name}", found[name].append, 5)
    query_id = running.instruct("the mug and the banana")

    def together():
        """A Perception with centroids and both messages of the same image."""
        for answer in reversed(running.perceptions):
            if answer.query_id == query_id and all(i.has_centroid for i in answer.instances):
                same = [next((m for m in messages if m.header == answer.header), None) for messages in found.values()]
                if all(same):
                    return answer, *same
        return None

    answer, flat, deep = running.spin_until(together, what="Perception, detections and detections_3d of one image")
    assert len(answer.instances) == len(flat.detections) == len(deep.detections) == 2
    for instance, box, cuboid in zip(answer.instances, flat.detections, deep.detections, strict=True):
        for detection in (box, cuboid):
            assert detection.id == instance.track_id and detection.results[0].hypothesis.class_id == instance.label
            assert detection.results[0].hypothesis.score == pytest.approx(instance.score)
        assert box.bbox.center.position.x - box.bbox.size_x / 2 == instance.box.x_min
        assert box.bbox.center.position.y + box.bbox.size_y / 2 == instance.box.y_max
        assert cuboid.results[0].pose.pose.position == instance.centroid
        # One metre away, seen by a lens of 600 px: a pixel is 1/600 m.
        assert cuboid.bbox.size.x == pytest.approx(box.bbox.size_x / 600, abs=0.03)
        assert cuboid.bbox.size.z == pytest.approx(0.0, abs=1e-6) and cuboid.bbox.center.position.z == pytest.approx(1.0)

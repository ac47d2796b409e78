"""Answers once more as vision_msgs, for the tools that know only those; only where that package is installed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from std_msgs.msg import Header

from pixel_perception.msg import Instance, Perception

try:
    from vision_msgs.msg import Detection2D, Detection2DArray, Detection3D, Detection3DArray, ObjectHypothesisWithPose

    INSTALLED = True
except ImportError:
    INSTALLED = False


def detections_2d(msg: Perception) -> Detection2DArray:
    """The instances' boxes in pixels of the source image: class_id is the label, id the track."""
    array = Detection2DArray(header=msg.header)
    for instance in msg.instances:
        detection, box = Detection2D(header=msg.header, id=instance.track_id, results=[_hypothesis(instance)]), instance.box
        detection.bbox.center.position.x = (box.x_min + box.x_max) / 2
        detection.bbox.center.position.y = (box.y_min + box.y_max) / 2
        detection.bbox.size_x, detection.bbox.size_y = box.x_max - box.x_min, box.y_max - box.y_min
        array.detections.append(detection)
    return array


def detections_3d(msg: Perception, surfaces: Sequence[np.ndarray | None]) -> Detection3DArray:
    """The boxes around the instances' visible surfaces, (N, 3) points in metres, along the axes of `msg.centroid_frame`.

    An instance without a surface (None) is left out; its `centroid_error` in the Perception says why.
    """
    array = Detection3DArray(header=Header(stamp=msg.header.stamp, frame_id=msg.centroid_frame))
    for instance, points in zip(msg.instances, surfaces, strict=True):
        if points is None:
            continue
        detection = Detection3D(header=array.header, id=instance.track_id, results=[_hypothesis(instance)])
        detection.results[0].pose.pose.position = instance.centroid
        low, high = points.min(0), points.max(0)
        center, size = detection.bbox.center.position, detection.bbox.size
        center.x, center.y, center.z = ((low + high) / 2).tolist()
        size.x, size.y, size.z = (high - low).tolist()
        array.detections.append(detection)
    return array


def _hypothesis(instance: Instance) -> ObjectHypothesisWithPose:
    hypothesis = ObjectHypothesisWithPose()
    hypothesis.hypothesis.class_id, hypothesis.hypothesis.score = instance.label, float(instance.score)
    return hypothesis

"""The answer drawn over its image, for people: made only when somebody subscribes."""

from __future__ import annotations

from sensor_msgs.msg import Image

from pixel_perception import drawing
from pixel_perception.ros.answers import Answer
from pixel_perception.ros.conversions import rgb_to_image


def overlay(answer: Answer) -> Image | None:
    """An rgb8 message of the image's size with masks, boxes, labels and captions; None when there is no image."""
    if answer.pixels is None:
        return None
    result = answer.result
    drawn = answer.pixels
    if result is not None:
        drawn = drawing.draw(drawn, result.instances, result.regions)  # labels and captions say what the words would
    return rgb_to_image(answer.frame.msg.header, drawn)

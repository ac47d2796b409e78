import numpy as np
import pytest

from pixel_perception.errors import PerceptionError
from pixel_perception.types import MAX_TEXT, Query, Task, check_frame


@pytest.mark.parametrize(
    ("query", "named"),
    [
        (Query(""), "text"),
        (Query("  ?! "), "text"),
        (Query("x" * 10_000), "text"),
        (Query(3), "text"),
        (Query("mug", task="PAINT"), "task"),
        (Query(task=Task.CAPTION_REGION), "boxes"),
        (Query("mug", task=Task.SEGMENT, boxes=((0, 0, 5, 5),)), "boxes"),
        (Query(boxes=((700, 500, 800, 600),)), "boxes[0]"),
        (Query(boxes=((0, 0, 5, 5), (5, 5, 5, 9))), "boxes[1]"),
        (Query(boxes=((0, 0, float("nan"), 5),)), "boxes[0]"),
        (Query(boxes=((0, 0, 5),)), "boxes[0]"),
        (Query(boxes=((0, 0, 5, 5),) * 65), "boxes"),
        (Query(points=((641, 3),)), "points[0]"),
        (Query("mug", score_threshold=1.5), "score_threshold"),
        (Query("mug", score_threshold=float("nan")), "score_threshold"),
        (Query("mug", max_instances=-1), "max_instances"),
        (Query("mug", max_new_tokens=0), "max_new_tokens"),
    ],
)
def test_bad_queries_name_their_field(query, named):
    with pytest.raises(PerceptionError) as caught:
        query.checked(640, 480)
    assert caught.value.code == "INVALID_QUERY"
    assert caught.value.message.startswith(f"{named}: expected ") and ", found " in caught.value.message
    assert len(caught.value.message) < 300


def test_task_is_decided_and_boxes_are_clipped():
    assert Query("mug").checked(640, 480).task is Task.ANSWER
    assert Query("mug", points=((3, 4),)).checked(640, 480).task is Task.CAPTION_REGION
    query = Query(boxes=((-10, 20, 1000, 900),)).checked(640, 480)
    assert query.task is Task.CAPTION_REGION and query.boxes == ((0.0, 20.0, 640.0, 480.0),)
    assert Query(task="NARRATE").checked(640, 480).task is Task.NARRATE
    assert Query("m" * MAX_TEXT).checked(640, 480).text == "m" * MAX_TEXT


@pytest.mark.parametrize("frame", [None, [[1]], np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)),
                                   np.zeros((0, 4, 3), np.uint8)])  # fmt: skip
def test_bad_frames(frame):
    with pytest.raises(PerceptionError, match="frame: expected .* found") as caught:
        check_frame(frame)
    assert caught.value.code == "INVALID_IMAGE"

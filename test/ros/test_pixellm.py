"""A node whose parameter `bundle` names a PixelLM: goals, streaming, an instruction that stands, and a task that this model lacks."""

from __future__ import annotations

from pixellm_on_the_spot import lessons, paint

from pixel_perception.action import Perceive
from pixel_perception.msg import GroundedBox, Query
from pixel_perception.srv import GetModelInfo


class Picture:
    """What the tiny network was shown, in place of the scene of the other tests."""

    def __init__(self, scene) -> None:
        self.depth = scene.depth

    def image(self):
        """(72, 96, 3) uint8 RGB."""
        return paint("red", "blue")


def test_a_node_answers_with_a_pixellm(launch, client, pixellm):
    node = launch(bundle=pixellm.bundle.folder, autostart="true", threads=1, use_depth="false", reground_period=0.0)
    client.scene = Picture(client.scene)
    client.connect()
    goal = client.ask("the red box and the blue box", task=Query.SEGMENT)
    assert goal.status == "succeeded" and goal.result.error_code == Perceive.Goal.NONE, goal.result.error_msg
    answer = goal.result.perception
    assert answer.text == "the red box is and the blue box." and answer.text.startswith(goal.text)
    assert [i.label for i in answer.instances] == ["the red box", "the blue box"] and 0 < answer.instances[0].score <= 1
    refused = client.ask(boxes=[GroundedBox(x_min=1.0, y_min=1.0, x_max=30.0, y_max=30.0)])
    assert refused.status == "aborted" and refused.result.error_code == Perceive.Goal.INVALID_QUERY
    assert "expected one of pixellm-tiny's (SEGMENT, REFER, NARRATE, ANSWER), found CAPTION_REGION" in refused.result.error_msg
    info = client.call(GetModelInfo, "get_model_info", GetModelInfo.Request())
    assert (info.name, info.image_width, list(info.tasks)) == ("pixellm-tiny", 64, ["segment", "refer", "narrate", "answer"])
    standing = client.instruct(next(iter(lessons()))[1].removesuffix(" Please output segmentation mask."))
    client.spin_until(lambda: sum(p.query_id == standing and bool(p.instances) for p in client.perceptions) >= 3, what="it to be followed")
    assert node.stop() == 0, node.output

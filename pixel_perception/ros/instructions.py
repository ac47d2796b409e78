"""Standing queries come in: a text on a topic, a query on another, a service, and the parameter `instruction`."""

from __future__ import annotations

import time
from collections.abc import Callable

from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.task import Future
from std_msgs.msg import String

from pixel_perception.errors import PerceptionError
from pixel_perception.msg import Query
from pixel_perception.ros import messages
from pixel_perception.ros.answers import Answer, Job, Token
from pixel_perception.ros.parameters import Settings
from pixel_perception.ros.standing import StandingQuery
from pixel_perception.ros.workers import Workers
from pixel_perception.srv import SetQuery


class Instructions:
    """Listens from the node's first moment: what is said last before activation counts once the node is active."""

    def __init__(self, node: LifecycleNode, workers: Callable[[], Workers | None], settings: Callable[[], Settings],
                 choose_cameras: Callable[[str], tuple[str, ...]], why_not: Callable[[], PerceptionError],
                 publish: Callable[[Answer], object]) -> None:
        """`workers` gives None while the node is not active, and `why_not` says why; `publish` is called only while it is."""
        self._node, self._workers, self._settings = node, workers, settings
        self._choose_cameras, self._why_not, self._publish = choose_cameras, why_not, publish
        self._kept: tuple[Query, str] | None = None
        self._count = 0
        for kind, topic, callback in ((String, "instruction", lambda msg: self._say(Query(text=msg.data), "instruction")),
                                      (Query, "query", lambda msg: self._say(msg, "query"))):  # fmt: skip
            node.create_subscription(kind, topic, callback, QoSProfile(depth=10),
                                     qos_overriding_options=QoSOverridingOptions.with_default_policies())  # fmt: skip
        node.create_service(SetQuery, "~/set_query", self._on_set_query)

    def begin(self) -> None:
        """The node is active from now on: stand what was said last, else the parameter."""
        kept, self._kept = self._kept, None
        if kept is not None:
            self._node.get_logger().info(f"{kept[1]}: {kept[0].text!r:.80}, said before activation, stands from now on.")
            self._stand(*kept)
        elif self._settings().instruction:
            self._stand(Query(text=self._settings().instruction), "instruction")

    def parameter_changed(self, text: str) -> None:
        """The parameter `instruction` was set; an empty one ends the standing query."""
        self._kept = None
        workers = self._workers()
        if workers is not None and text:
            self._stand(Query(text=text), "instruction")
        elif workers is not None:
            workers.clear()

    def _say(self, msg: Query, kind: str) -> None:
        if self._workers() is not None:
            self._stand(msg, kind)
        elif self._kept != (msg, kind):  # publishers repeat themselves
            self._kept = msg, kind
            self._node.get_logger().info(f"{kind}: {msg.text!r:.80} is kept until activation ({self._why_not().message})")

    def _stand(self, msg: Query, kind: str) -> None:
        self._count += 1
        try:
            standing = self._standing(msg, f"{kind}-{self._count}", "", Token())
        except PerceptionError as error:
            self._publish(Answer("", msg.id or f"{kind}-{self._count}", error=error))
            return
        self._workers().stand(standing)

    def _standing(self, msg: Query, new_id: str, camera: str, token: Token) -> StandingQuery:
        if self._workers() is None:
            raise self._why_not()
        settings = self._settings()
        if msg.max_instances == 0:
            msg.max_instances = settings.max_instances
        query = messages.query_from_msg(msg, new_id, settings.max_new_tokens, settings.score_threshold)
        cameras = self._choose_cameras(camera)
        return StandingQuery(Job(query, cameras[0], token), cameras, anonymous=not msg.id)

    async def _on_set_query(self, request: SetQuery.Request, response: SetQuery.Response) -> SetQuery.Response:
        if request.clear:
            self._kept = None
            workers = self._workers()
            if workers is not None:
                workers.clear()
            response.success = True
            return response
        self._count += 1
        try:
            token = Token(time.monotonic() + self._settings().goal_timeout)
            standing = self._standing(request.query, f"query-{self._count}", request.camera, token)
        except PerceptionError as error:
            response.error_code, response.error_msg = messages.error_code(error), error.message
            return response
        standing.answers_once = True
        answered, executor = Future(), self._node.executor
        standing.job.on_done = lambda answer, _: executor.create_task(answered.set_result, answer)
        self._workers().stand(standing)
        answer = await answered
        error = answer.error
        response.query_id = answer.query_id
        response.success = error is None or error.code == "NOTHING_FOUND"
        response.error_code, response.error_msg = messages.error_code(error), error.message if error else ""
        return response

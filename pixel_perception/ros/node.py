"""The lifecycle node: wires inputs, workers, goals and outputs together, and does no work itself."""

from __future__ import annotations

import functools
import gc
import threading
import time
import traceback
from collections.abc import Callable, Sequence

import numpy as np
import rclpy
from rcl_interfaces.msg import SetParametersResult
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter

from pixel_perception.errors import PerceptionError
from pixel_perception.perception import Perception
from pixel_perception.ros import messages, model_info, parameters
from pixel_perception.ros.answerer import Answerer
from pixel_perception.ros.diagnostics import Diagnostics
from pixel_perception.ros.goals import PerceiveServer
from pixel_perception.ros.inputs import CameraInput
from pixel_perception.ros.instructions import Instructions
from pixel_perception.ros.outputs import Outputs
from pixel_perception.ros.workers import Workers
from pixel_perception.srv import GetModelInfo
from pixel_perception.types import Query

SUCCESS, FAILURE, ERROR = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE, TransitionCallbackReturn.ERROR
STOP_WITHIN = 3.0
"""Seconds that the workers get to stop at deactivation; language looks at its token before every step."""

Transition = Callable[["PerceptionNode", LifecycleState], TransitionCallbackReturn]


def reported(transition: Transition) -> Transition:
    """Log what a transition raises: rclpy turns it into ERROR without a word."""

    @functools.wraps(transition)
    def run(self: PerceptionNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(self, state)
        except Exception as error:
            self._error = PerceptionError("INTERNAL", f"{transition.__name__}: {type(error).__name__}: {error}")
            self.get_logger().error(traceback.format_exc())
            return ERROR

    return run


class PerceptionNode(LifecycleNode):
    """Answers language goals about camera images. See docs/node.md for its topics, services, actions and parameters."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__("perception", **kwargs)
        self.settings = parameters.declare(self)
        self._phase = "unconfigured"
        self._error: PerceptionError | None = None
        self._changed = threading.Condition()
        self._cameras: dict[str, CameraInput] = {}
        self._perception: Perception | None = None
        self._loaded: GetModelInfo.Response | None = None
        self._outputs: Outputs | None = None
        self._workers: Workers | None = None
        self._active_since = 0.0
        self.add_on_set_parameters_callback(self._on_set_parameters)
        if hasattr(self, "add_post_set_parameters_callback"):  # Iron and later
            self.add_post_set_parameters_callback(self._apply)
        self._instructions = Instructions(self, lambda: self._workers, lambda: self.settings, self._choose_cameras, self._why_not,
                                          lambda answer: self._outputs.publish(answer))  # fmt: skip
        self.create_service(GetModelInfo, "~/get_model_info", self._on_get_model_info)
        self._goals = PerceiveServer(self, lambda: self._workers, lambda: self.settings, self._choose_camera, self._why_not)
        self._diagnostics = Diagnostics(self)
        self.create_timer(1.0, self._diagnose)

    # Lifecycle

    @reported
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load and verify the model, run it once, and open the topics."""
        settings, started = self.settings, time.monotonic()
        try:
            perception = self._perception = Perception.open(settings.bundle or None, settings.backend, settings.threads or None)
        except PerceptionError as error:
            self._error = error
            self.get_logger().error(f"bundle: {error}")
            return FAILURE
        # The first run allocates; it must not be somebody's first answer.
        self._perception.ask(np.full((480, 640, 3), 127, np.uint8), Query("the mug", max_new_tokens=4))
        self._loaded = model_info.describe(self._perception)
        self._cameras = {name: CameraInput(self, name, settings.use_depth, self._changed) for name in settings.cameras}
        self._outputs = Outputs(self, self._cameras, lambda: self.settings, lambda: perception.info.backend)
        self._error, self._phase = None, "inactive"
        if self._perception.info.accepted_drift:
            self.get_logger().warning(f"The bundle differs from its training: {self._perception.info.accepted_drift}")
        self.get_logger().info(f"Loaded {self._loaded.name} {self._loaded.version} from {self._loaded.bundle} "
                               f"in {time.monotonic() - started:.1f} s.")  # fmt: skip
        return super().on_configure(state)

    @reported
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let frames and goals in."""
        result = super().on_activate(state)
        for camera in self._cameras.values():
            camera.open()
        answerer = Answerer(self._perception, self.get_logger())
        self._workers = Workers(answerer, self._cameras, self._changed, lambda: self.settings, self._outputs.publish,
                                self.get_logger())  # fmt: skip
        self._workers.start()
        self._active_since, self._phase = time.monotonic(), "active"
        self._instructions.begin()
        return result

    @reported
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End goals with what they have, stop the workers, close the gates."""
        self._stop()
        return super().on_deactivate(state)

    @reported
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model and the topics."""
        self._free()
        return super().on_cleanup(state)

    @reported
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and free whatever there is."""
        self._stop()
        self._free()
        return super().on_shutdown(state)

    @reported
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Back to unconfigured, with nothing left over."""
        self._stop()
        self._free()
        return super().on_error(state)

    def _stop(self) -> None:
        workers, self._workers = self._workers, None
        if workers is not None and not workers.stop(STOP_WITHIN):
            self.get_logger().error(f"A worker did not stop within {STOP_WITHIN:g} s; its answer will be thrown away.")
        for camera in self._cameras.values():
            camera.close()
        if self._phase == "active":
            self._phase = "inactive"

    def _free(self) -> None:
        for camera in self._cameras.values():
            camera.destroy()
        if self._outputs is not None:
            self._outputs.destroy()
        self._cameras, self._outputs, self._perception, self._loaded = {}, None, None, None
        self._phase = "unconfigured"
        gc.collect()

    # Parameters

    def _on_set_parameters(self, changes: Sequence[Parameter]) -> SetParametersResult:
        sentence = parameters.refusal(changes, self._phase != "unconfigured")
        if not sentence and not hasattr(self, "add_post_set_parameters_callback"):
            self._apply(changes)
        return SetParametersResult(successful=not sentence, reason=sentence)

    def _apply(self, changes: Sequence[Parameter]) -> None:
        self.settings = parameters.updated(self.settings, changes)
        for change in changes:
            if change.name == "instruction":
                self._instructions.parameter_changed(change.value)
        if self._workers is not None:
            self._workers.wake()

    # Everything else

    def _choose_camera(self, name: str) -> str:
        if name in self._cameras:
            return name
        if not name and len(self._cameras) == 1:
            return next(iter(self._cameras))
        if self._workers is None:
            raise self._why_not()
        known = ", ".join(repr(camera) for camera in self._cameras)
        raise PerceptionError("INVALID_QUERY", f"camera: expected one of {known}, found {name!r}.")

    def _choose_cameras(self, name: str) -> tuple[str, ...]:
        return (self._choose_camera(name),) if name else tuple(self._cameras)

    def _why_not(self) -> PerceptionError:
        if self._error is not None and self._phase == "unconfigured":
            return self._error
        return PerceptionError("NOT_ACTIVE", f"lifecycle state: expected active, found {self._phase}.")

    def _on_get_model_info(self, _: GetModelInfo.Request, response: GetModelInfo.Response) -> GetModelInfo.Response:
        response = self._loaded or response
        response.error_code = messages.error_code(self._error)
        response.error_msg = self._error.message if self._error else ""
        return model_info.now(response, self._perception)

    def _diagnose(self) -> None:
        loaded, perception = self._loaded, self._perception
        values = loaded and {"name": loaded.name, "version": loaded.version, "digest": loaded.digest, "bundle": loaded.bundle,
                             "backend": perception.info.backend, "engines": perception.progress or "nothing is being built",
                             "bundle_bytes": loaded.bundle_bytes, "accepted_drift": perception.info.accepted_drift}  # fmt: skip
        statuses = [self._diagnostics.model(values, self._error), self._diagnostics.work(self._workers)]
        if self._workers is not None:
            statuses += [self._diagnostics.camera(camera, self._active_since, self.settings.no_image_warning)
                         for camera in self._cameras.values()]  # fmt: skip
        self._diagnostics.publish(statuses)

    def close(self) -> None:
        """Stop the workers and destroy the node, whatever state it is in."""
        self._stop()
        self._goals.destroy()
        self.destroy_node()


def main(args: Sequence[str] | None = None) -> None:
    """Run the node until it is told to stop."""
    rclpy.init(args=args)
    try:
        node = PerceptionNode()
    except (ParameterException, ValueError) as error:
        rclpy.try_shutdown()
        raise SystemExit(f"perception_node: {error}") from None
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        if node.settings.autostart and node.trigger_configure() == SUCCESS:
            node.trigger_activate()
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.close()
        rclpy.try_shutdown()

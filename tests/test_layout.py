"""Imports of the files beside main.py; import-linter checks the packages (see pyproject.toml)."""

import ast

import pytest
from processes import REPO

# Each imports only from those behind it, and from the packages.
LAYERS = ["main", "predict", "arguments", "checks", "engine"]
# Imports within functions: main.py's block, and optional packages.
WITHIN_FUNCTIONS = {
    "datasets/convert/yolo.py": {"yaml"},
    "datasets/panoptic_eval.py": {"panopticapi.evaluation"},
    "models/export/__main__.py": {"onnx", "detr"},  # detr needs onnx
    "util/output.py": {"util.tensorboard_log"},  # needs tensorboard
}


def imports(node):
    found = set()
    for each in ast.walk(node):
        if isinstance(each, ast.Import):
            found |= {alias.name for alias in each.names}
        elif isinstance(each, ast.ImportFrom):
            found.add(each.module)
    return found


@pytest.mark.parametrize("name", LAYERS)
def test_imports_point_downwards(name):
    imported = imports(ast.parse((REPO / f"{name}.py").read_text()))
    assert not imported & set(LAYERS[: LAYERS.index(name) + 1])
    assert "jittor" not in {module.split(".")[0] for module in imported}


def test_imports_within_functions_are_for_optional_packages():
    folders = [REPO / name for name in ("models", "datasets", "util")]
    files = [REPO / f"{name}.py" for name in LAYERS[1:]]
    files += [path for folder in folders for path in folder.rglob("*.py")]
    found = {}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and imports(node):
                name = file.relative_to(REPO).as_posix()
                found.setdefault(name, set()).update(imports(node))
    assert found == WITHIN_FUNCTIONS

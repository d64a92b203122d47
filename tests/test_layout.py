"""What the files beside main.py may import; import-linter looks at the packages (see
pyproject.toml).
"""

import ast

import pytest
from processes import REPO

# Each imports only from those behind it, and from the packages.
LAYERS = ["main", "arguments", "predict", "engine"]


@pytest.mark.parametrize("name", LAYERS)
def test_imports_point_downwards(name):
    imported = set()
    for node in ast.walk(ast.parse((REPO / f"{name}.py").read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    above = LAYERS[: LAYERS.index(name) + 1]
    assert not imported & set(above)
    assert "jittor" not in {module.split(".")[0] for module in imported}

"""The architecture: which package may import which."""

import ast
import importlib
from pathlib import Path

import pytest

import paddleseg_segformer as ps
from paddleseg_segformer.config_check import COMPONENTS

PACKAGE = Path(__file__).parents[1] / "paddleseg_segformer"

# From the bottom up; a module may import from its own layer and those before it.
LAYERS = ["errors", "fs", "device", "log", "compat", "schedule", "config_check"]
LAYERS += ["config", "ops", "data", "weights", "models", "inference", "engine", "deploy"]
LAYERS += ["compat_run", "plugin", "cli", "__main__"]
# Imports upwards, within functions: a checkpoint's error names the variant it is of.
ALLOWED = {("weights/architecture.py", "models.mix_transformer")}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_imports_go_downwards(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts == ("__init__",):
        return
    own = LAYERS.index(parts[0])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.level == 0:
            continue
        modules = [node.module] if node.module else [alias.name for alias in node.names]
        if node.level < len(parts):  # within the same package
            continue
        for module in modules:
            if (path.relative_to(PACKAGE).as_posix(), module) not in ALLOWED:
                assert LAYERS.index(module.split(".")[0]) <= own, f"{path} imports {module}"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=lambda p: p.parent.stem)
def test_the_public_names_of_a_package_exist(path):
    module = importlib.import_module(".".join(path.parent.relative_to(PACKAGE.parent).parts))
    assert all(hasattr(module, name) for name in getattr(module, "__all__", ()))


def test_configs_build_the_components_of_this_package():
    """And not PaddleSeg's of the same name."""
    names = set(ps.__all__) - {"InputError", "Prediction", "Predictor", "load_weights", "tune_cpu"}
    assert {name for name in names if COMPONENTS[name] is not getattr(ps, name)} == set()

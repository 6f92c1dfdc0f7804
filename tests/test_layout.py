"""The architecture: which package may import which."""

import ast
import importlib
from pathlib import Path

import pytest

import paddleseg_segformer as ps
from paddleseg_segformer.config_check import COMPONENTS

PACKAGE = Path(__file__).parents[1] / "paddleseg_segformer"

# From the bottom up; a module may import from its own layer and those before it.
LAYERS = ["errors", "requirements", "fs", "device", "log", "compat", "schedule"]
LAYERS += ["yaml_reader", "config_check"]
LAYERS += ["config", "ops", "data", "weights", "models", "inference", "engine", "doctor", "deploy"]
LAYERS += ["compat_run", "plugin", "cli", "__main__"]
# Imports upwards, within functions: a checkpoint's error names the variant it is of.
ALLOWED = {("weights/architecture.py", "models.mix_transformer.find_variant")}


def imports(text, package):
    """The names that a module's text imports from this package, such as "data.classes.palette".

    ``package`` is what a relative import starts from, such as "paddleseg_segformer.data".
    """
    names = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            start = parts[: len(parts) + 1 - node.level] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            names += [f"{module}.{alias.name}" for alias in node.names]
    roots = [name.partition(".") for name in names]
    return {rest for root, _, rest in roots if root == PACKAGE.name}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_imports_go_downwards(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts == ("__init__",):
        return
    package = ".".join(path.parent.relative_to(PACKAGE.parent).parts)
    for name in imports(path.read_text(encoding="utf-8"), package):
        if (path.relative_to(PACKAGE).as_posix(), name) not in ALLOWED:
            layer = name.split(".")[0]  # not of a layer: imported from the package itself
            assert layer in LAYERS[: LAYERS.index(parts[0]) + 1], f"{path} imports {name}"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("import numpy as np", set()),
        ("import paddleseg_segformer", {""}),
        ("import paddleseg_segformer.engine.trainer as t", {"engine.trainer"}),
        ("from paddleseg_segformer import engine, InputError", {"engine", "InputError"}),
        ("from paddleseg_segformer.engine import train", {"engine.train"}),
        ("def f():\n    from ..engine.trainer import train", {"engine.trainer.train"}),
        ("from .. import device", {"device"}),
        ("from . import classes", {"data.classes"}),
        ("from .classes import palette", {"data.classes.palette"}),
        ("from paddleseg_segformer_other.engine import train", set()),
    ],
)
def test_every_form_of_import_is_found(text, expected):
    assert imports(text, "paddleseg_segformer.data") == expected


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=lambda p: p.parent.stem)
def test_the_public_names_of_a_package_exist(path):
    module = importlib.import_module(".".join(path.parent.relative_to(PACKAGE.parent).parts))
    assert all(hasattr(module, name) for name in getattr(module, "__all__", ()))


def test_configs_build_the_components_of_this_package():
    """And not PaddleSeg's of the same name."""
    names = set(ps.__all__) - {"InputError", "Prediction", "Predictor", "load_weights", "tune_cpu"}
    assert {name for name in names if COMPONENTS[name] is not getattr(ps, name)} == set()

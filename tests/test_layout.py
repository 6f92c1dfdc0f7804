"""The house's plan: which room may use which."""

import ast
import importlib
from pathlib import Path

import pytest

import paddleseg_segformer as ps
from paddleseg_segformer.config_check import COMPONENTS

PACKAGE = Path(__file__).parents[1] / "paddleseg_segformer"

# From the ground up; a room may import from its own floor and those before it.
FLOORS = ["errors", "folders", "runtime", "mends", "schedule", "config_file", "config_check"]
FLOORS += ["config", "ops", "data", "weights", "models", "deploy", "engine", "plugin", "__main__"]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_imports_go_downwards(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts == ("__init__",):
        return
    own = FLOORS.index(parts[0])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.level == 0:
            continue
        rooms = [node.module] if node.module else [alias.name for alias in node.names]
        if node.level < len(parts):  # within the same folder
            continue
        for room in rooms:
            assert FLOORS.index(room.split(".")[0]) <= own, f"{path} imports {room}"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=lambda p: p.parent.stem)
def test_what_a_room_offers_is_there(path):
    room = importlib.import_module(".".join(path.parent.relative_to(PACKAGE.parent).parts))
    assert all(hasattr(room, name) for name in getattr(room, "__all__", ()))


def test_configs_build_what_the_package_offers():
    """And not PaddleSeg's of the same name."""
    names = set(ps.__all__) - {"InputError", "load_weights", "runtime"}
    assert {name for name in names if COMPONENTS[name] is not getattr(ps, name)} == set()

"""A valid workspace for each case."""

import shutil

import pytest

from .cases import Tools, Workspace, succeeds


def pytest_collection_modifyitems(items):
    for item in items:
        if "tools" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session")
def tools():
    return Tools()


@pytest.fixture(scope="session")
def trained(tools, tmp_path_factory):
    """The folder of a workspace with a model trained for one iteration."""
    workspace = Workspace(tmp_path_factory.mktemp("trained"))
    workspace.fill()
    run = ["--config", workspace.config, "--device", "cpu", "--save_dir", workspace.root / "run"]
    succeeds("train", [*run, "--do_eval"], tools)
    return workspace.root


@pytest.fixture
def workspace(trained, tmp_path):
    """A copy for a test to damage."""
    shutil.copytree(trained / "run", tmp_path / "run")
    workspace = Workspace(tmp_path)
    workspace.fill()
    return workspace

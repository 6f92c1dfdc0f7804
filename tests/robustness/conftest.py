"""One process to fork tools from, and a sound place for each case."""

import shutil

import pytest

from .cases import Place, Tools, works


@pytest.fixture(scope="session")
def tools(tmp_path_factory):
    tools = Tools(tmp_path_factory.mktemp("outputs"))
    yield tools
    tools.close()


@pytest.fixture(scope="session")
def sound(tools, tmp_path_factory):
    """A place in which a model was trained for one iteration."""
    place = Place(tmp_path_factory.mktemp("sound"))
    place.fill()
    run = ["--config", place.config, "--device", "cpu", "--save_dir", place.root / "run"]
    works("train", [*run, "--do_eval"], tools)
    return place.root


@pytest.fixture
def place(sound, tmp_path):
    """A copy to spoil."""
    shutil.copytree(sound / "run", tmp_path / "run")
    place = Place(tmp_path)
    place.fill()
    return place

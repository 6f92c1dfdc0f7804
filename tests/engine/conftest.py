"""Drawn scenes for the training runs."""

import pytest
from training_runs import draw_scenes


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    return draw_scenes(tmp_path_factory.mktemp("scenes"))

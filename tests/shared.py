"""The folder of real images and weights beside a developer's checkout, which is not published."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("SHARED", Path(__file__).parents[2] / "shared"))
ADE20K_SAMPLE = SHARED / "data/ade20k_sample/ADEChallengeData2016"

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not on this machine")

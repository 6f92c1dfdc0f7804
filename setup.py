"""The dependencies, one of which depends on the environment; all else is in pyproject.toml."""

import subprocess
import sys

from setuptools import setup

# pip builds in an isolated environment; -I runs Python in the one that pip installs into.
FIND_GPU_BUILD = "import importlib.metadata as m; m.version('paddlepaddle-gpu')"
has_gpu_build = not subprocess.run(
    [sys.executable, "-I", "-c", FIND_GPU_BUILD], stderr=subprocess.DEVNULL
).returncode

setup(
    install_requires=[
        "paddleseg==2.8.0",
        "opencv-python<=4.6.0",  # PaddleSeg's bound; its wheel needs NumPy 1
        "numpy>=1.21,<2",
        "pandas<3",  # for VisualDL's web page
        "pillow",
        "jinja2",  # evaluation report
        "matplotlib>=3.5",  # training curves
        "pyyaml",
        "safetensors>=0.6",  # Paddle needs it, too
        "tqdm",
        "visualdl>=2.5",
        *([] if has_gpu_build else ["paddlepaddle>=3.0"]),
    ],
)

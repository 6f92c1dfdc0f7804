"""What of the packaging depends on the environment or the layout; the rest is in pyproject.toml."""

import subprocess
import sys

from setuptools import find_packages, setup

# pip builds in an environment of its own; -I makes Python look into the user's instead.
FIND_GPU_BUILD = "import importlib.metadata as m; m.version('paddlepaddle-gpu')"
has_gpu_build = not subprocess.run(
    [sys.executable, "-I", "-c", FIND_GPU_BUILD], stderr=subprocess.DEVNULL
).returncode

setup(
    install_requires=[
        "paddleseg==2.8.0",
        "opencv-python<=4.6.0",  # PaddleSeg's bound, whose wheel needs NumPy 1
        "numpy>=1.21,<2",
        "pandas<3",  # VisualDL's page
        "pillow",
        "jinja2",  # the evaluation report
        "matplotlib>=3.5",  # training curves
        "pyyaml",
        "safetensors>=0.6",  # which Paddle needs, too
        "tqdm",
        "visualdl>=2.5",
        *([] if has_gpu_build else ["paddlepaddle>=3.0"]),
    ],
    packages=[
        *find_packages(include=["paddleseg_segformer", "paddleseg_segformer.*"]),
        "paddleseg_segformer.configs",
    ],
    # Beside the package in a checkout, inside it once installed.
    package_dir={"paddleseg_segformer.configs": "configs"},
    package_data={
        "paddleseg_segformer": ["py.typed"],
        "paddleseg_segformer.configs": ["**/*.yaml"],
        "paddleseg_segformer.data": ["*.tsv"],
        "paddleseg_segformer.deploy": ["*.html"],
        "paddleseg_segformer.engine": ["*.html"],
    },
)

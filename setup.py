"""Packaging; the package's ``__init__.py`` has the version, its ``__main__.py`` the tools."""

import re
import subprocess
import sys
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
init, main = (
    (here / "paddleseg_segformer" / name).read_text(encoding="utf-8")
    for name in ("__init__.py", "__main__.py")
)

REQUIRES = [
    "paddleseg==2.8.0",
    "opencv-python<=4.6.0",  # PaddleSeg's bound, whose wheel needs NumPy 1
    "numpy>=1.21,<2",
    "pandas<3",  # VisualDL's page
    "pillow",
    "jinja2",  # the report's page
    "matplotlib>=3.5",  # the curves of a run
    "pyyaml",
    "safetensors>=0.6",  # which Paddle needs, too
    "tqdm",
    "visualdl>=2.5",
]

tools = re.findall(r'"(\w+)"', re.search(r"COMMANDS = \(([^)]+)\)", main).group(1))

# pip builds in an environment of its own; -I makes Python look into the user's instead.
FIND_GPU_BUILD = "import importlib.metadata as m; m.version('paddlepaddle-gpu')"
has_gpu_build = not subprocess.run(
    [sys.executable, "-I", "-c", FIND_GPU_BUILD], stderr=subprocess.DEVNULL
).returncode

setup(
    name="paddleseg-segformer",
    version=re.search(r'__version__ = "(.+)"', init).group(1),
    description="SegFormer for PaddleSeg: train, evaluate and ship SegFormer-B0 to B5",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(9, 13)),
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=">=3.9,<3.13",
    install_requires=REQUIRES + ([] if has_gpu_build else ["paddlepaddle>=3.0"]),
    extras_require={
        "onnx": [
            "onnx>=1.15,<1.18",  # the newest wants NumPy 2
            "onnxruntime",
            "openvino; python_version >= '3.10'",
            "paddle2onnx>=2.1",
        ],
        "serve": ["flask", "waitress>=3"],
    },
    packages=[
        *find_packages(include=["paddleseg_segformer", "paddleseg_segformer.*"]),
        "paddleseg_segformer.configs",
    ],
    # Beside the package in a checkout, inside it once installed.
    package_dir={
        "paddleseg_segformer.configs": "configs",
        "paddleseg_segformer.tools": "tools",
    },
    py_modules=[f"paddleseg_segformer.tools.{name}" for name in tools],
    package_data={
        "paddleseg_segformer": ["py.typed"],
        "paddleseg_segformer.configs": ["**/*.yaml"],
        "paddleseg_segformer.data": ["*.tsv"],
        "paddleseg_segformer.deploy": ["*.html"],
    },
)

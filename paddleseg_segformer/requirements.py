"""The packages that are not installed with this one: Paddle, OpenCV and PaddleSeg.

Each of them has several builds, and requiring one would replace another.
"""

import contextlib
import importlib
import io
import re
import sys

from .errors import one_line

MIN_PADDLE = "2.6.2"
# PyPI's newest paddlepaddle-gpu is 2.6.2.
INSTALL_GPU_BUILD = (
    f"pip install 'paddlepaddle-gpu>={MIN_PADDLE}' "
    "-i https://www.paddlepaddle.org.cn/packages/stable/cu126/"
)
INSTALL_PADDLE = (
    f"for CPUs run pip install 'paddlepaddle>={MIN_PADDLE}', for NVIDIA GPUs {INSTALL_GPU_BUILD}"
)
INSTALL_OPENCV = "run pip install 'opencv-python<=4.6.0' 'numpy<2', or 'opencv-python>=4.10'"
INSTALL_PADDLESEG = "run pip install paddleseg 'numpy<2'"
if sys.version_info >= (3, 13):  # PaddleSeg requires an OpenCV that does not run there
    INSTALL_OPENCV = "run pip install 'opencv-python>=4.10'"
    INSTALL_PADDLESEG = (
        "run pip install filelock prettytable scikit-image scikit-learn, "
        "then pip install --no-deps paddleseg"
    )
INSTALL_LIBRARIES = "run apt-get install libgl1 libglib2.0-0 libgomp1"


class RequirementError(ImportError):
    """A required package cannot be used: which one, why, and the commands that install it.

    A program that does not catch it prints its message without a traceback and exits with code 2.
    """


def check_requirements() -> None:
    """Import Paddle, OpenCV and PaddleSeg.

    Raises:
        RequirementError: One of them is missing, cannot be imported, or is too old.
    """
    try:
        paddle = _import("paddle", "PaddlePaddle", INSTALL_PADDLE)
        version = paddle.__version__  # 0.0.0 if built from source
        if (1,) <= _numbers(version) < _numbers(MIN_PADDLE):
            raise RequirementError(f"PaddlePaddle {version}: is too old; {INSTALL_PADDLE}.")
        with contextlib.redirect_stderr(io.StringIO()):  # NumPy 2 prints a page on older builds
            _import("cv2", "OpenCV", INSTALL_OPENCV)
        _import("paddleseg", "PaddleSeg", INSTALL_PADDLESEG)
    except RequirementError:
        sys.excepthook = _without_traceback(sys.excepthook)
        raise


def _import(module, name, commands):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        is_missing = isinstance(error, ModuleNotFoundError) and error.name == module
        reason = "is not installed" if is_missing else f"cannot be imported ({one_line(error)})"
        if "cannot open shared object" in str(error):
            commands = INSTALL_LIBRARIES
        raise RequirementError(f"{name}: {reason}; {commands}.") from error


def _numbers(version):
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def _without_traceback(excepthook):
    def report(kind, error, traceback):
        if not isinstance(error, RequirementError):
            return excepthook(kind, error, traceback)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

    return report

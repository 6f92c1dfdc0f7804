"""What a program says where Paddle, OpenCV or PaddleSeg is missing or unsuitable."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from paddleseg_segformer.requirements import (
    INSTALL_LIBRARIES,
    MIN_PADDLE,
    RequirementError,
    check_requirements,
)

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def excepthook(monkeypatch):
    """Restores the hook, which a failed check replaces."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


def message(**replaced):
    """The message of the check while modules are replaced by others, or raise an error."""
    with pytest.MonkeyPatch.context() as patch:

        def import_module(name):
            module = replaced.get(name, SimpleNamespace(__version__=MIN_PADDLE))
            if isinstance(module, Exception):
                raise module
            return module

        patch.setattr(importlib, "import_module", import_module)
        with pytest.raises(RequirementError) as caught:
            check_requirements()
    assert "\n" not in str(caught.value)
    return str(caught.value)


COMMANDS = {
    "paddle": [f"'paddlepaddle>={MIN_PADDLE}'", "paddlepaddle-gpu", "-i https://www.paddlepaddle"],
    "cv2": ["pip install 'opencv-python"],
    "paddleseg": ["pip install", "paddleseg"],
}


@pytest.mark.parametrize("module", COMMANDS)
def test_a_missing_package_is_named_with_the_commands(module):
    text = message(**{module: ModuleNotFoundError(f"No module named {module!r}", name=module)})
    assert ": is not installed; " in text
    assert all(command in text for command in COMMANDS[module])


@pytest.mark.parametrize("version", ["2.6.1", "1.8.5", "2.0.0-rc1"])
def test_an_old_paddle_is_refused(version):
    text = message(paddle=SimpleNamespace(__version__=version))
    assert text.startswith(f"PaddlePaddle {version}: is too old; ")
    assert all(command in text for command in COMMANDS["paddle"])


@pytest.mark.parametrize("version", [MIN_PADDLE, "3.10.0", "3.4.0.dev20260101", "0.0.0"])
def test_newer_paddles_are_accepted(version, monkeypatch):
    """Also those built from source, whose version is 0.0.0."""
    modules = {"paddle": SimpleNamespace(__version__=version)}
    monkeypatch.setattr(importlib, "import_module", modules.get)
    check_requirements()


def test_the_reason_of_a_failed_import_is_given():
    text = message(paddleseg=ModuleNotFoundError("No module named 'filelock'", name="filelock"))
    assert "PaddleSeg: cannot be imported (No module named 'filelock'); " in text
    library = "libGL.so.1: cannot open shared object file: No such file or directory"
    text = message(cv2=ImportError(library))
    assert text == f"OpenCV: cannot be imported ({library}); {INSTALL_LIBRARIES}."


def test_the_page_that_numpy_prints_on_an_older_opencv_is_omitted(tmp_path, monkeypatch, capsys):
    """NumPy prints it, with a traceback, before it raises."""
    lines = ["import sys", "sys.stderr.write('A module that was compiled' * 99)"]
    lines += ["raise ImportError('numpy.core.multiarray failed to import')"]
    (tmp_path / "cv2.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cv2")
    with pytest.raises(RequirementError, match=r"OpenCV: .*multiarray failed to import"):
        check_requirements()
    assert capsys.readouterr().err == ""


PROGRAMS = {
    "import": ("-c", "import paddleseg_segformer"),
    "tool": ("tools/train.py", "--config", "configs/quickstart.yaml"),
    "module": ("-m", "paddleseg_segformer", "val"),
    "compat_run": ("-m", "paddleseg_segformer.compat_run", "train.py"),
}


@pytest.fixture(scope="module")
def no_paddle(tmp_path_factory):
    """The environment variables of a Python without Paddle."""
    folder = tmp_path_factory.mktemp("no_paddle")
    (folder / "paddle.py").write_text("raise ModuleNotFoundError('No paddle', name='paddle')")
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


@pytest.mark.integration
@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_end_with_one_sentence(program, no_paddle):
    command = [sys.executable, *PROGRAMS[program]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=no_paddle)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: PaddlePaddle: is not installed; ")


@pytest.mark.integration
def test_programs_can_do_without(no_paddle):
    """The error is an ImportError, and other errors keep their traceback."""
    lines = ["try: import paddleseg_segformer", "except ImportError: 1 / 0"]
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=no_paddle)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr.splitlines()[-1]
    assert "Traceback" in done.stderr

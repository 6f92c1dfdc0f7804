"""The wheel: its files and dependencies, and that it works without a checkout."""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from paddleseg_segformer import __version__ as segformer_version
from paddleseg_segformer.cli import COMMANDS

ROOT = Path(__file__).parents[1]
TINY_SCENES = ("make_scenes", "--train", 4, "--val", 2, "--size", 96, 96)
SOURCES = ("paddleseg_segformer", "configs", "tools", "benchmarks", "docs", "tests")
SOURCES += tuple(path.name for path in ROOT.iterdir() if path.is_file())


def can_build():
    """Whether pip and a setuptools that builds wheels without the wheel package are installed."""
    try:
        setuptools = version("pip") and version("setuptools")
    except PackageNotFoundError:
        return False
    return [int(part) for part in setuptools.split(".")[:2]] >= [70, 1]


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not can_build(), reason="needs pip, and setuptools 70.1 or newer (requirements-test.txt)"
    ),
]


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def build_wheel(source, dist):
    pip("wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation", "-w", dist, source)
    (wheel,) = dist.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the checkout, because building in place leaves build folders behind."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    (source / "output").mkdir()
    (source / "output/secret.py").touch()
    return source


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    return build_wheel(source, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder into which the wheel is installed; its dependencies are this environment's."""
    target = tmp_path_factory.mktemp("installed")
    pip("install", "-q", "--no-deps", "--no-index", "--target", target, wheel)
    return target


def run(installed, folder, *arguments, program=("-m", "paddleseg_segformer")):
    return subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed)},
    )


def test_wheel_contains_the_package_and_its_configs(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = "paddleseg_segformer/"
    expected = {package + f"configs/{p.relative_to(ROOT / 'configs')}" for p in yaml_files()}
    files = (p.relative_to(ROOT) for p in (ROOT / package).rglob("*") if p.is_file())
    expected |= {p.as_posix() for p in files if "__pycache__" not in p.parts}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert package + "py.typed" in names


# Distributions whose name differs from the imported package's.
DISTRIBUTIONS = {"PIL": "pillow", "cv2": "opencv-python", "yaml": "pyyaml", "werkzeug": "flask"}


# Paddle's GPU build has another distribution name; doctor compares with PyTorch where it finds it.
NOT_REQUIRED = {"paddle", "torch", "transformers"}


@pytest.mark.skipif(sys.version_info < (3, 10), reason="needs sys.stdlib_module_names")
def test_wheel_requires_what_it_imports(wheel):
    imported = set()
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        for name in (name for name in names if name.endswith(".py")):
            for node in ast.walk(ast.parse(archive.read(name))):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    imported.add(node.module.split(".")[0])
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith("/METADATA"))
    required = set(re.findall(r"^Requires-Dist: ([\w-]+)", metadata, re.MULTILINE))
    imported -= {*sys.stdlib_module_names, *NOT_REQUIRED, "paddleseg_segformer"}
    assert {DISTRIBUTIONS.get(name, name) for name in imported} <= required


def requirements(wheel, extra=None):
    """The names of the distributions that an extra, or without extras the wheel, requires."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        text = archive.read(name).decode()
    lines = re.findall(r"^Requires-Dist: ([\w-]+)(.*)$", text, re.MULTILINE)
    extras = [re.search(r"extra == ['\"](\w+)", rest) for _, rest in lines]
    return {line[0] for line, of in zip(lines, extras) if (of.group(1) if of else None) == extra}


def test_packages_of_which_there_are_several_builds_are_not_required(wheel):
    """Requiring one replaces another: a GPU build, a clone, or OpenCV with or without windows."""
    required = requirements(wheel)
    assert not any(name.startswith(("paddle", "opencv")) for name in required), required
    assert "numpy" in required and requirements(wheel, "cpu") >= {"paddlepaddle"}
    assert requirements(wheel, "raster") == {"rasterio"}
    assert not any(name.startswith("paddlepaddle") for name in requirements(wheel, "paddleseg"))


@pytest.mark.parametrize("extra", ["", "[paddleseg]"])
def test_a_clone_and_a_gpu_build_are_kept(extra, wheel, tmp_path, monkeypatch):
    """With stand-ins, whose metadata precede this environment's, and without a package index."""
    write_metadata(tmp_path, "paddleseg", "0.0.0.dev0", "opencv-python<=4.6.0")
    write_metadata(tmp_path, "paddlepaddle-gpu", "3.3.0")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    output = pip("install", "--dry-run", "--no-index", f"{wheel}{extra}")
    (line,) = (line for line in output.splitlines() if line.startswith("Would install"))
    assert line.split()[2:] == [f"paddleseg-segformer-{segformer_version}"]


def write_metadata(folder, name, version, *requirements):
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in requirements]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    (info / "INSTALLER").write_text("pip\n")
    (info / "RECORD").touch()


def test_sdist_makes_the_same_wheel(wheel, source, tmp_path):
    code = f"import setuptools.build_meta as b; b.build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    rebuilt = build_wheel(sdist, tmp_path)
    assert zipfile.ZipFile(rebuilt).namelist() == zipfile.ZipFile(wheel).namelist()


def yaml_files():
    return (ROOT / "configs").rglob("*.yaml")


def test_commands_are_listed(installed, tmp_path):
    done = run(installed, tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(installed / "paddleseg_segformer/configs") in done.stdout
    for name in COMMANDS:
        assert f"\n  {name} " in done.stdout
    done = run(installed, tmp_path, "tain")
    assert done.returncode == 2 and "tain" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["train", "make_scenes"])
def test_help_shows_the_command_as_typed(installed, tmp_path, command):
    done = run(installed, tmp_path, command, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: python -m paddleseg_segformer {command} ")
    assert f"  python -m paddleseg_segformer {command} --" in done.stdout


def test_console_script(installed, tmp_path):
    script = [installed / "bin/segformer"]
    done = run(installed, tmp_path, "train", "--help", program=script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: segformer train ")
    done = run(installed, tmp_path, *TINY_SCENES, program=script)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("data/scenes/images/*/*.jpg"))) == 6


def test_quick_start_in_an_empty_folder(installed, tmp_path):
    """With data-loading workers, and a config whose base is one of the package's."""

    def done(*arguments):
        process = run(installed, tmp_path, *arguments)
        assert process.returncode == 0, process.stderr
        return process.stdout

    done(*TINY_SCENES)
    (tmp_path / "own.yaml").write_text("_base_: configs/quickstart.yaml\nbatch_size: 2\n")
    options = ("--device", "cpu", "--iters", 2)
    done("train", "--config", "own.yaml", "--num_workers", 2, "--save_dir", "run", *options)
    done("train", "--config", "configs/quickstart.yaml", "--batch_size", 2, *options)
    for folder in ("run", "output"):
        assert (tmp_path / folder / "iter_2/model.pdparams").is_file()
    model = ("--model_path", "output/iter_2/model.pdparams")
    scores = done("val", "--config", "configs/quickstart.yaml", *model, "--device", "cpu")
    assert "#Images: 2 mIoU" in scores


def test_configs_in_the_working_directory_come_first(installed, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/quickstart.yaml").write_text("iters: 3\n")
    arguments = ("train", "--device", "cpu", "--config")
    done = run(installed, tmp_path, *arguments, "configs/quickstart.yaml")
    assert done.returncode == 2 and "model: is missing" in done.stderr
    done = run(installed, tmp_path, *arguments, "configs/absent.yaml")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: configs/absent.yaml: does not exist")

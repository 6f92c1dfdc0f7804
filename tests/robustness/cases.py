"""Cases of malformed input: a valid workspace, a change that damages it, and a tool to run on it.

A case passes if the tool exits with code 2, or another that the case names, prints at most three
lines that name what is wrong, and changes no file.
"""

import copy
import re
from dataclasses import dataclass
from typing import Callable, NamedTuple

import cv2
import numpy as np
import pytest
import yaml
from run_tools import run_in_new_process, run_tool

TIMEOUT = 60
SIZE = 64  # pixels a side

TREE = {
    "batch_size": 2,
    "iters": 1,
    "optimizer": {"type": "AdamW", "weight_decay": 0.01},
    "lr_scheduler": {"type": "PolynomialDecay", "learning_rate": 0.001, "power": 1.0},
    "loss": {"types": [{"type": "CrossEntropyLoss"}], "coef": [1]},
    "model": {
        "type": "SegFormer",
        "num_classes": 3,
        "embedding_dim": 8,
        "backbone": {
            "type": "MixVisionTransformer",
            "embed_dims": [4, 8, 20, 32],
            "depths": [1, 1, 1, 1],
        },
    },
}


class Result(NamedTuple):
    """Exit code and output of a process."""

    code: int
    out: str
    err: str


class Workspace:
    """A folder with four images and labels, file lists, a config, and a training run in ``run``.

    Attributes:
        root: Path of the folder.
        out: Path in it for results, which does not exist.
        config: Path of the config.
        options: Options of ``fork_server.start``.
    """

    def __init__(self, root):
        self.root, self.out, self.config = root, root / "out", root / "config.yaml"
        self.options = {"hidden": [], "max_file_bytes": None}

    def fill(self):
        for folder in ("images", "labels"):
            (self.root / folder).mkdir()
        rng = np.random.default_rng(0)
        for i in range(4):
            cv2.imwrite(str(self.image(i)), rng.integers(0, 255, [SIZE, SIZE, 3]))
            cv2.imwrite(str(self.label(i)), np.full([SIZE, SIZE], i % 3, "uint8"))
        for split in ("train", "val"):
            self.write_list([f"images/{i}.png labels/{i}.png" for i in range(4)], split)
        self.write_config(self.tree())

    def image(self, number=0):
        return self.root / f"images/{number}.png"

    def label(self, number=0):
        return self.root / f"labels/{number}.png"

    def write_list(self, lines, split="train", end="\n"):
        path = self.root / f"{split}.txt"
        path.write_bytes(end.join([*lines, ""]).encode())
        return path

    def tree(self):
        tree = copy.deepcopy(TREE)
        for split in ("train", "val"):
            tree[f"{split}_dataset"] = {
                "type": "Dataset",
                "dataset_root": str(self.root),
                f"{split}_path": str(self.root / f"{split}.txt"),
                "num_classes": 3,
                "mode": split,
                "transforms": [{"type": "Normalize"}],
            }
        return tree

    def write_config(self, tree):
        content = tree if isinstance(tree, bytes) else yaml.safe_dump(tree, sort_keys=False)
        self.config.write_bytes(content if isinstance(content, bytes) else content.encode())
        return self.config

    def with_opts(self, *opts):
        """Arguments of any tool that reads a config."""
        return ["--config", self.config, "--device", "cpu", *(["--opts", *opts] if opts else [])]

    def train(self, *opts):
        """Arguments of ``train``."""
        return ["--save_dir", self.out, *self.with_opts(*opts)]

    def predict(self, image, model=None):
        """Arguments of ``predict``, without a config, which is in the model's manifest."""
        model = model or self.root / "run/best_model"
        paths = ["--model_path", model, "--image_path", image, "--save_dir", self.out]
        return [*paths, "--device", "cpu"]

    def write(self, name, content=b""):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def color_masks(self):
        """A folder with labels.txt and a mask in ``colored``."""
        self.write("masks/labels.txt", b"a 0 0 0\nb 128 0 0\n")
        (self.root / "masks/colored").mkdir()
        cv2.imwrite(str(self.root / "masks/colored/0.png"), np.zeros([SIZE, SIZE, 3], "uint8"))
        return self.root / "masks"

    def link_to_itself(self, name):
        (self.root / name).symlink_to(self.root / name)
        return self.root / name

    def files(self):
        """Size and modification time by path, except of folders."""
        paths = [path for path in self.root.rglob("*") if path.is_symlink() or not path.is_dir()]
        return {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths}


class Tools:
    """Runs the command-line tools, in forks of one process or each in a new one."""

    def __call__(self, name, arguments, **options):
        """Run a tool in a fork, with options of ``fork_server.start``."""
        return self._result(run_tool(name, *arguments, timeout=TIMEOUT, **options))

    def run_in_new_process(self, name, arguments):
        """Run a tool like a user."""
        return self._result(run_in_new_process(name, *arguments))

    def _result(self, done):
        return Result(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Case:
    """A malformed input.

    Attributes:
        name: Name of the case.
        tool: Name of the tool.
        make: Function that damages a ``Workspace`` and returns the tool's arguments.
        expected: Beginning of an error message, or several: what is wrong with which file or key.
            ``{}`` is the workspace, and ``…`` stands for any text.
        code: Exit code.
        new_process: Whether to run the tool in a new process instead of a fork.
    """

    name: str
    tool: str
    make: Callable
    expected: object
    code: int = 2
    new_process: bool = False


def table(cases):
    """Parametrize a test by cases."""
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


REQUIRED_PACKAGES = {"serve": ("flask", "waitress")}


def check(case, workspace, tools):
    arguments = case.make(workspace)
    hidden = workspace.options.get("hidden", [])
    for package in REQUIRED_PACKAGES.get(case.tool, ()):
        if package not in hidden:
            pytest.importorskip(package, reason=f"{package} is not installed")
    before = workspace.files()
    if case.new_process:
        result = tools.run_in_new_process(case.tool, arguments)
    else:
        result = tools(case.tool, arguments, **workspace.options)
    print(result.err)
    assert result.code == case.code, result.out[-2000:] + result.err[-2000:]
    assert "Traceback" not in result.out + result.err
    assert len(result.err.splitlines()) <= 3, result.err
    # These tools log all problems on standard output, and their number on standard error.
    output = result.err + (result.out if case.tool in ("check_dataset", "predict") else "")
    problems = re.findall(r"^(?:error: |.*\[ERROR\] )(.*)", output, re.MULTILINE)
    for expected in [case.expected] if isinstance(case.expected, str) else case.expected:
        parts = expected.replace("{}", str(workspace.root)).split("…")
        pattern = ".*".join(map(re.escape, parts))
        assert any(re.match(pattern, problem) for problem in problems), f"{expected}\n{output}"
    assert workspace.files() == before


def succeeds(tool, arguments, tools, **options):
    """Run a tool, which must succeed, and return its result."""
    result = tools(tool, arguments, **options)
    assert result.code == 0, result.out[-2000:] + result.err[-2000:]
    return result

"""What the tables of hostile inputs are made of: a sound place, and a case that spoils it.

A case passes if the tool exits with 2 (or another code that the table gives), says in at most three
lines what is wrong and with what, and leaves every file as it was.
"""

import copy
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, NamedTuple

import cv2
import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[2]
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


class Done(NamedTuple):
    """A process that has ended."""

    code: int
    out: str
    err: str


class Place:
    """A folder with four pairs, their lists, a configuration and, as ``run``, what was trained.

    Attributes:
        root, out: Paths: of the folder, and of one in it for results, which is not there.
        config: Path.
        options: How the tool is run: ``hidden`` packages, the ``largest_file`` in bytes.
    """

    def __init__(self, root):
        self.root, self.out, self.config = root, root / "out", root / "config.yaml"
        self.options = {"hidden": [], "largest_file": None}

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
        """The arguments of any tool that reads a configuration."""
        return ["--config", self.config, "--device", "cpu", *(["--opts", *opts] if opts else [])]

    def train(self, *opts):
        """The arguments of ``train``."""
        return ["--save_dir", self.out, *self.with_opts(*opts)]

    def predict(self, image, model=None):
        """The arguments of ``predict``, without a configuration: the model's manifest has it."""
        model = model or self.root / "run/best_model"
        paths = ["--model_path", model, "--image_path", image, "--save_dir", self.out]
        return [*paths, "--device", "cpu"]

    def write(self, name, content=b""):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def files(self):
        """Size and time of each file, and of what is no file, by path."""
        paths = [path for path in self.root.rglob("*") if path.is_symlink() or not path.is_dir()]
        return {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths}


class Tools:
    """Runs the tools, in forked children of one process or in processes of their own."""

    def __init__(self, folder):
        self.folder = folder
        self.server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forks.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            text=True,
        )
        assert self.server.stdout.readline() == "ready\n"

    def __call__(self, name, arguments, hidden=(), largest_file=None):
        outputs = [self.folder / stream for stream in ("stdout", "stderr")]
        for path in outputs:
            path.write_bytes(b"")
        job = {
            "script": str(ROOT / f"tools/{name}.py"),
            "arguments": list(map(str, arguments)),
            "hidden": list(hidden),
            "largest_file": largest_file,
            "timeout": TIMEOUT,
            "stdout": str(outputs[0]),
            "stderr": str(outputs[1]),
        }
        print(json.dumps(job), file=self.server.stdin, flush=True)
        code = json.loads(self.server.stdout.readline())
        return Done(code, *(path.read_text(errors="replace") for path in outputs))

    def alone(self, name, arguments):
        """As a user runs it."""
        command = [sys.executable, f"tools/{name}.py", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=TIMEOUT)
        return Done(done.returncode, done.stdout, done.stderr)

    def close(self):
        self.server.stdin.close()
        self.server.wait()


@dataclass(frozen=True)
class Case:
    """A bad input.

    Attributes:
        name: Of the case.
        tool: Of the tool.
        make: Takes a ``Place``, spoils something in it, and returns the tool's arguments.
        named: What standard error must name, or several such.
        code: The exit code.
        alone: Whether the tool runs in a process of its own.
    """

    name: str
    tool: str
    make: Callable
    named: object
    code: int = 2
    alone: bool = False


def table(cases):
    """The cases as a test's parameters."""
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


NEEDS = {"serve": ("flask", "waitress")}  # to come as far as the mistake


def check(case, place, tools):
    arguments = case.make(place)
    hidden = place.options.get("hidden", [])
    for package in NEEDS.get(case.tool, ()):
        if package not in hidden:
            pytest.importorskip(package)
    before = place.files()
    if case.alone:
        done = tools.alone(case.tool, arguments)
    else:
        done = tools(case.tool, arguments, **place.options)
    print(done.err)
    assert done.code == case.code, done.out[-2000:] + done.err[-2000:]
    assert "Traceback" not in done.out + done.err
    assert len(done.err.splitlines()) <= 3, done.err
    # These tools list on standard output all that is wrong, and at the end say how much it is.
    told = done.err + (done.out if case.tool in ("check_dataset", "predict") else "")
    for name in [case.named] if isinstance(case.named, (str, Path)) else case.named:
        assert str(name) in told
    assert place.files() == before


def works(tool, arguments, tools, **options):
    """What a tool's process has said that must end well."""
    done = tools(tool, arguments, **options)
    assert done.code == 0, done.out[-2000:] + done.err[-2000:]
    return done

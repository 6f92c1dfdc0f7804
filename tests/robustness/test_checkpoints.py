"""Checkpoints that are damaged, are of another format or model, or would run code."""

import io
import json
import pickle
import shutil
import struct
import tarfile
import zipfile

import numpy as np
import pytest

from paddleseg_segformer.weights import read_saved_dict

from .cases import Case, check, table


def model(change, tool="val"):
    """A tool on the trained model, with ``change`` applied to the bytes of its file."""

    def make(workspace):
        path = workspace.root / "weights.pdparams"
        path.write_bytes(change((workspace.root / "run/best_model/model.pdparams").read_bytes()))
        return arguments(workspace, path, tool)

    return make


def arguments(workspace, path, tool="val"):
    if tool == "convert":
        return [path, workspace.root / "converted.pdparams"]
    if tool == "train":
        return workspace.train(f"model.pretrained={path}")
    model = ["--model_path", path]
    if tool == "export":
        return [
            *model,
            *workspace.train()[:2],
            "--image_path",
            workspace.image(),
            "--config",
            workspace.config,
        ]
    if tool == "serve":
        return [*model, "--port", 0]
    return [*workspace.with_opts(), *model]


def tensors(change, tool="val"):
    """A tool on the trained model, with ``change`` applied to its state dict."""

    def make(workspace):
        state = read_saved_dict(workspace.root / "run/best_model/model.pdparams")
        path = workspace.root / "weights.pdparams"
        path.write_bytes(pickle.dumps(change(state), protocol=4))
        return arguments(workspace, path, tool)

    return make


def file(name, data, tool="val"):
    return lambda workspace: arguments(workspace, workspace.write(name, data), tool)


class Canary:
    """Creates a file if it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def runs_code(workspace):
    data = pickle.dumps({"a": Canary(workspace.root / "canary")}, protocol=4)
    return arguments(workspace, workspace.write("evil.pdparams", data))


def runs_code_torch(workspace):
    with zipfile.ZipFile(workspace.root / "evil.pth", "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps(Canary(workspace.root / "canary"), protocol=2))
    return arguments(workspace, workspace.root / "evil.pth", "convert")


def zip_bomb(workspace):
    with zipfile.ZipFile(workspace.root / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(200 << 20))
    return arguments(workspace, workspace.root / "bomb.pth", "convert")


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return file("model.safetensors", struct.pack("<Q", len(text)) + text + data, "convert")


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def archive(*names, data=b""):
    """A .tar.gz of files with these names and data."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def gzip_bomb(workspace):
    data = archive("model.pdparams", data=bytes(300 << 20))
    return arguments(workspace, workspace.write("bomb.tar.gz", data), "convert")


def resume(damage):
    """``train`` resumed from the checkpoint, with ``damage`` applied to its folder."""

    def make(workspace):
        damage(workspace.root / "run/iter_1")
        return [*workspace.train("iters=2"), "--resume_model", workspace.root / "run/iter_1"]

    return make


def another_model(workspace):
    """The checkpoint has the optimizer state of another model."""
    opts = ("iters=2", "model.embedding_dim=16")
    return [*workspace.train(*opts), "--resume_model", workspace.root / "run/iter_1"]


def another_optimizer(workspace):
    opts = ("iters=2", "optimizer={type: SGD, momentum: 0.9}")
    return [*workspace.train(*opts), "--resume_model", workspace.root / "run/iter_1"]


def resume_from(name):
    def make(workspace):
        (workspace.root / "foreign").mkdir()
        workspace.write("foreign/model.pdparams", b"x")
        (workspace.root / "empty").mkdir()
        return [*workspace.train(), "--resume_model", workspace.root / name]

    return make


def resume_all_damaged(workspace):
    (workspace.root / "run/iter_1/model.pdopt").write_bytes(b"")
    return ["--save_dir", workspace.root / "run", *workspace.with_opts("iters=2"), "--resume"]


def other_num_classes(workspace):
    sections = ("model", "train_dataset", "val_dataset")
    return [
        *workspace.with_opts(*[f"{section}.num_classes=5" for section in sections]),
        *("--model_path", workspace.root / "run/best_model"),
    ]


def empty_folder(workspace):
    (workspace.root / "nothing").mkdir()
    return arguments(workspace, workspace.root / "nothing")


def manifest(content):
    def make(workspace):
        (workspace.root / "run/best_model/manifest.json").write_bytes(content)
        return workspace.predict(workspace.image())

    return make


def exported(name, content):
    def make(workspace):
        workspace.write(f"graph/{name}", content)
        return workspace.predict(workspace.image(), workspace.root / "graph")

    return make


def drop(name):
    return lambda state: {key: value for key, value in state.items() if key != name}


def nan(state):
    state["linear_pred.bias"] = state["linear_pred.bias"] * np.nan
    return state


W = "weights.pdparams"
DESCRIPTION = b"""
Deploy: {transforms: [{type: Normalize}], output_op: argmax, input_shape: [1, 3, -1, -1]}
classes: [a]
palette: [[0, 0, 0]]
"""
INVALID = [
    Case(
        "missing",
        "val",
        lambda p: arguments(p, p.root / "no.pdparams"),
        "no.pdparams",
        new_process=True,
    ),
    Case("missing, predict", "predict", lambda p: p.predict(p.image(), p.root / "no"), "no"),
    Case("missing, export", "export", lambda p: arguments(p, p.root / "no", "export"), "no"),
    Case("missing, convert", "convert", lambda p: arguments(p, p.root / "no", "convert"), "no"),
    Case("missing, serve", "serve", lambda p: arguments(p, p.root / "no", "serve"), "no"),
    Case(
        "missing pretrained weights", "train", lambda p: arguments(p, p.root / "no", "train"), "no"
    ),
    Case("an empty folder", "val", empty_folder, "nothing"),
    Case("empty", "val", model(lambda data: b""), W),
    Case("empty, predict", "predict", lambda p: p.predict(p.image(), p.write("a", b"")), "a"),
    Case("text", "val", model(lambda data: b"hello"), W),
    Case("a web page", "val", model(lambda data: b"<!DOCTYPE html><p>404"), W),
    Case("a Git LFS pointer", "val", model(lambda data: b"version https://git-lfs\n"), W),
    Case("only zero bytes", "val", model(lambda data: bytes(9999)), W),
    *[
        Case(f"truncated at {tenth}0%", "val", model(lambda d, t=tenth: d[: len(d) * t // 10]), W)
        for tenth in (1, 3, 5, 7, 9)
    ],
    Case("truncated by one byte", "convert", model(lambda data: data[:-1], "convert"), W),
    Case("runs code", "val", runs_code, ("evil.pdparams", "io.open")),
    Case("runs code, PyTorch format", "convert", runs_code_torch, ("evil.pth", "io.open")),
    Case("a zip bomb", "convert", zip_bomb, "bomb.pth"),
    Case("a gzip bomb", "convert", gzip_bomb, "bomb.tar.gz"),
    Case("an empty zip file", "convert", file("a.pth", b"PK\5\6" + bytes(18), "convert"), "a.pth"),
    Case(
        "path traversal in an archive",
        "convert",
        file("a.tar.gz", archive("../../canary"), "convert"),
        "a.tar.gz",
    ),
    Case(
        "path traversal in an archive with weights",
        "convert",
        file("a.tar.gz", archive("../../canary.pdparams", data=b"x"), "convert"),
        "a.tar.gz",
    ),
    Case(
        "an archive with two files",
        "convert",
        file("a.tar.gz", archive("a.pdparams", "b.pdparams"), "convert"),
        "a.tar.gz",
    ),
    Case(
        "a truncated archive",
        "convert",
        file("a.tar.gz", archive("a.pdparams")[:40], "convert"),
        "a.tar.gz",
    ),
    Case(
        "a safetensors header beyond the data",
        "convert",
        safetensors({"a": TENSOR}),
        "model.safetensors",
    ),
    Case(
        "a safetensors header longer than the file",
        "convert",
        file("a.safetensors", struct.pack("<Q", 1 << 60) + b"{}", "convert"),
        "a.safetensors",
    ),
    Case(
        "a safetensors header that is not JSON",
        "convert",
        safetensors(b"{nothing"),
        "model.safetensors",
    ),
    Case(
        "overlapping tensors",
        "convert",
        safetensors({"a": TENSOR, "b": TENSOR}, bytes(8)),
        "model.safetensors",
    ),
    Case(
        "a shape that overflows",
        "convert",
        safetensors({"a": {**TENSOR, "shape": [1 << 62, 1 << 62]}}, bytes(8)),
        "model.safetensors",
    ),
    Case("no tensors", "val", tensors(lambda state: {}), W),
    Case("a list", "val", tensors(lambda state: [1]), W),
    Case("text tensors", "val", tensors(lambda state: {"a": np.array(["x"])}), W),
    Case("NaN", "val", tensors(nan), (W, "linear_pred.bias")),
    Case("NaN in pretrained weights", "train", tensors(nan, "train"), (W, "linear_pred.bias")),
    Case(
        "a missing tensor",
        "val",
        tensors(drop("backbone.norm1.weight")),
        (W, "backbone.norm1.weight"),
    ),
    Case(
        "another architecture",
        "val",
        tensors(lambda state: {"conv.weight": np.ones([2, 2], "float32")}),
        W,
    ),
    Case(
        "another width",
        "val",
        lambda p: [
            *p.with_opts("model.embedding_dim=16"),
            "--model_path",
            p.root / "run/best_model",
        ],
        ("best_model", "embedding_dim"),
    ),
    Case("another number of classes", "val", other_num_classes, "best_model"),
    Case("an empty manifest", "predict", manifest(b"{}"), "manifest.json"),
    Case("a text manifest", "predict", manifest(b"hello"), "manifest.json"),
    Case("a manifest with a list", "predict", manifest(b"[]"), "manifest.json"),
    Case("a binary manifest", "predict", manifest(bytes(range(256))), "manifest.json"),
    Case("an empty deploy.yaml", "predict", exported("deploy.yaml", b""), "graph"),
    Case(
        "a deploy.yaml without model",
        "predict",
        exported(
            "deploy.yaml",
            DESCRIPTION,
        ),
        "model.json",
    ),
    Case("an ONNX file of zeros", "predict", exported("model.onnx", bytes(99)), "model.onnx"),
    Case("an empty ONNX file", "predict", exported("model.onnx", b""), "model.onnx"),
    Case("resumed from a missing folder", "train", resume_from("absent"), "absent"),
    Case("resumed from an empty folder", "train", resume_from("empty"), "empty"),
    Case("resumed from a folder without manifest", "train", resume_from("foreign"), "foreign"),
    Case("resumed from a file", "train", resume_from("foreign/model.pdparams"), "model.pdparams"),
    Case(
        "resumed without its optimizer",
        "train",
        resume(lambda f: (f / "model.pdopt").unlink()),
        "model.pdopt",
    ),
    Case(
        "resumed from a truncated model",
        "train",
        resume(lambda f: (f / "model.pdparams").write_bytes(b"x")),
        "model.pdparams",
    ),
    Case(
        "resumed from an empty manifest",
        "train",
        resume(lambda f: (f / "manifest.json").write_bytes(b"{}")),
        "iter_1",
    ),
    Case(
        "resumed from the best model",
        "train",
        lambda p: [*p.train("iters=2"), "--resume_model", p.root / "run/best_model"],
        "best_model",
    ),
    Case("resumed with another model", "train", another_model, "iter_1"),
    Case("resumed with another optimizer", "train", another_optimizer, "iter_1"),
    Case("resumed when all are damaged", "train", resume_all_damaged, "run"),
    Case(
        "a save_dir with a run",
        "train",
        lambda p: ["--save_dir", p.root / "run", *p.with_opts()],
        "run",
    ),
]


@table(INVALID)
def test_invalid(case, workspace, tools):
    check(case, workspace, tools)
    assert not list(workspace.root.parent.rglob("canary*"))


@pytest.mark.parametrize("tool", ["val", "predict"])
def test_no_manifest_is_needed(tool, workspace, tools):
    """The architecture is inferred from the tensors of the checkpoint."""
    (workspace.root / "run/best_model/manifest.json").unlink()
    if tool == "val":
        result = tools(
            "val", [*workspace.with_opts(), "--model_path", workspace.root / "run/best_model"]
        )
    else:
        result = tools("predict", workspace.predict(workspace.image()))
    assert result.code == 0, result.err
    shutil.rmtree(workspace.out, ignore_errors=True)

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

from paddleseg_segformer.engine import checkpoint
from paddleseg_segformer.inference.backends import GRAPH_FILE
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


def rewritten(change):
    """``resume`` from a manifest with ``change`` applied to it and a fitting checksum."""

    def damage(folder):
        manifest = checkpoint.read_manifest(folder)
        change(manifest)
        checkpoint.write_manifest(folder, manifest)

    return resume(damage)


def swap_parameters(manifest):
    names = manifest["parameters"]
    manifest["parameters"] = dict(zip(names, reversed(names.values())))


def origin_is_no_checkpoint(workspace):
    """The folder of a run that has not saved yet, and that started from another folder."""
    workspace.out.mkdir()
    workspace.write("out/run.json", b'{"run": "a", "origin": ".."}')
    return [*workspace.train(), "--resume"]


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
        if name.endswith(".onnx"):
            pytest.importorskip("onnx", reason="onnx is not installed")
        workspace.write(f"graph/{name}", content)
        return workspace.predict(workspace.image(), workspace.root / "graph")

    return make


def drop(name):
    return lambda state: {key: value for key, value in state.items() if key != name}


def nan(state):
    state["linear_pred.bias"] = state["linear_pred.bias"] * np.nan
    return state


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
        "{}/no.pdparams: cannot be read (No such file or directory).",
    ),
    Case(
        "missing, predict",
        "predict",
        lambda p: p.predict(p.image(), p.root / "no"),
        "{}/no: cannot be read (No such file or directory).",
    ),
    Case(
        "missing, export",
        "export",
        lambda p: arguments(p, p.root / "no", "export"),
        "{}/no: cannot be read (No such file or directory).",
    ),
    Case(
        "missing, convert",
        "convert",
        lambda p: arguments(p, p.root / "no", "convert"),
        "{}/no: cannot be read (No such file or directory).",
    ),
    Case(
        "missing, serve",
        "serve",
        lambda p: arguments(p, p.root / "no", "serve"),
        "{}/no: cannot be read (No such file or directory).",
    ),
    Case(
        "missing pretrained weights",
        "train",
        lambda p: arguments(p, p.root / "no", "train"),
        "{}/no: cannot be read (No such file or directory).",
    ),
    Case(
        "an empty folder",
        "val",
        empty_folder,
        "{}/nothing: holds none of model.pdparams, ema_model.pdparams",
    ),
    Case("empty", "val", model(lambda data: b""), "{}/weights.pdparams: is empty"),
    Case(
        "empty, predict",
        "predict",
        lambda p: p.predict(p.image(), p.write("a", b"")),
        "{}/a: is empty",
    ),
    Case(
        "text",
        "val",
        model(lambda data: b"hello"),
        "{}/weights.pdparams: is not a checkpoint of Paddle, PyTorch or safetensors.",
    ),
    Case(
        "a web page",
        "val",
        model(lambda data: b"<!DOCTYPE html><p>404"),
        "{}/weights.pdparams: is a web page, not a checkpoint",
    ),
    Case(
        "a Git LFS pointer",
        "val",
        model(lambda data: b"version https://git-lfs\n"),
        "{}/weights.pdparams: is not a checkpoint of Paddle, PyTorch or safetensors.",
    ),
    Case(
        "only zero bytes",
        "val",
        model(lambda data: bytes(9999)),
        "{}/weights.pdparams: is not a checkpoint of Paddle, PyTorch or safetensors.",
    ),
    *[
        Case(
            f"truncated at {tenth}0%",
            "val",
            model(lambda d, t=tenth: d[: len(d) * t // 10]),
            "{}/weights.pdparams: is not a checkpoint, or is damaged (UnpicklingError: ",
        )
        for tenth in (1, 3, 5, 7, 9)
    ],
    Case(
        "truncated by one byte",
        "convert",
        model(lambda data: data[:-1], "convert"),
        "{}/weights.pdparams: is not a checkpoint, or is damaged",
    ),
    Case("runs code", "val", runs_code, "{}/evil.pdparams: asks to run io.open"),
    Case(
        "runs code, PyTorch format", "convert", runs_code_torch, "{}/evil.pth: asks to run io.open"
    ),
    Case(
        "a zip bomb",
        "convert",
        zip_bomb,
        "{}/bomb.pth: is not a checkpoint, or is damaged (ValueError: it is compressed, which",
    ),
    Case(
        "a gzip bomb",
        "convert",
        gzip_bomb,
        "{}/bomb.tar.gz: would unpack to far more than its size",
    ),
    Case(
        "an empty zip file",
        "convert",
        file("a.pth", b"PK\5\6" + bytes(18), "convert"),
        "{}/a.pth: is not a checkpoint, or is damaged",
    ),
    Case(
        "path traversal in an archive",
        "convert",
        file("a.tar.gz", archive("../../canary"), "convert"),
        "{}/a.tar.gz: holds 0 files *.pdparams",
    ),
    Case(
        "path traversal in an archive with weights",
        "convert",
        file("a.tar.gz", archive("../../canary.pdparams", data=b"x"), "convert"),
        "{}/a.tar.gz: is not a checkpoint, or is damaged",
    ),
    Case(
        "an archive with two files",
        "convert",
        file("a.tar.gz", archive("a.pdparams", "b.pdparams"), "convert"),
        "{}/a.tar.gz: holds 2 files *.pdparams",
    ),
    Case(
        "a truncated archive",
        "convert",
        file("a.tar.gz", archive("a.pdparams")[:40], "convert"),
        "{}/a.tar.gz: is not a checkpoint, or is damaged",
    ),
    Case(
        "a safetensors header beyond the data",
        "convert",
        safetensors({"a": TENSOR}),
        "{}/model.safetensors: is a damaged safetensors file",
    ),
    Case(
        "a safetensors header longer than the file",
        "convert",
        file("a.safetensors", struct.pack("<Q", 1 << 60) + b"{}", "convert"),
        "{}/a.safetensors: is a damaged safetensors file",
    ),
    Case(
        "a safetensors header that is not JSON",
        "convert",
        safetensors(b"{nothing"),
        "{}/model.safetensors: is a damaged safetensors file",
    ),
    Case(
        "overlapping tensors",
        "convert",
        safetensors({"a": TENSOR, "b": TENSOR}, bytes(8)),
        "{}/model.safetensors: is a damaged safetensors file",
    ),
    Case(
        "a shape that overflows",
        "convert",
        safetensors({"a": {**TENSOR, "shape": [1 << 62, 1 << 62]}}, bytes(8)),
        "{}/model.safetensors: is a damaged safetensors file",
    ),
    Case("no tensors", "val", tensors(lambda state: {}), "{}/weights.pdparams: holds no tensors"),
    Case(
        "a list",
        "val",
        tensors(lambda state: [1]),
        "{}/weights.pdparams: holds a list, not a dictionary of tensors.",
    ),
    Case(
        "text tensors",
        "val",
        tensors(lambda state: {"a": np.array(["x"])}),
        "{}/weights.pdparams: is not a checkpoint, or is damaged (ValueError: an array of",
    ),
    Case(
        "NaN",
        "val",
        tensors(nan),
        "{}/weights.pdparams: linear_pred.bias has NaN or infinite values",
    ),
    Case(
        "NaN in pretrained weights",
        "train",
        tensors(nan, "train"),
        "{}/weights.pdparams: linear_pred.bias has NaN or infinite values",
    ),
    Case(
        "a missing tensor",
        "val",
        tensors(drop("backbone.norm1.weight")),
        "{}/weights.pdparams: lacks, or has in another shape, backbone.norm1.weight",
    ),
    Case(
        "another architecture",
        "val",
        tensors(lambda state: {"conv.weight": np.ones([2, 2], "float32")}),
        "{}/weights.pdparams: is no SegFormer in a known format",
    ),
    Case(
        "another width",
        "val",
        lambda p: [
            *p.with_opts("model.embedding_dim=16"),
            "--model_path",
            p.root / "run/best_model",
        ],
        "{}/run/best_model: is a SegFormer … embedding_dim 8, … and the model … embedding_dim 16,",
    ),
    Case(
        "another number of classes",
        "val",
        other_num_classes,
        "{}/run/best_model: has no linear_pred.weight of this model",
    ),
    Case(
        "an empty manifest",
        "predict",
        manifest(b"{}"),
        "{}/run/best_model/manifest.json: cannot be read",
    ),
    Case(
        "a text manifest",
        "predict",
        manifest(b"hello"),
        "{}/run/best_model/manifest.json: cannot be read",
    ),
    Case(
        "a manifest with a list",
        "predict",
        manifest(b"[]"),
        "{}/run/best_model/manifest.json: cannot be read",
    ),
    Case(
        "a binary manifest",
        "predict",
        manifest(bytes(range(256))),
        "{}/run/best_model/manifest.json: cannot be read",
    ),
    Case(
        "an empty deploy.yaml",
        "predict",
        exported("deploy.yaml", b""),
        "{}/graph: was not exported by tools/export.py",
    ),
    Case(
        "a deploy.yaml in UTF-16",
        "predict",
        exported("deploy.yaml", DESCRIPTION.decode().encode("utf-16")),
        "{}/graph: was not exported by tools/export.py",
    ),
    Case(
        "a deploy.yaml without model",
        "predict",
        exported(
            "deploy.yaml",
            DESCRIPTION,
        ),
        f"{{}}/graph/{GRAPH_FILE}: does not exist",
    ),
    Case(
        "an ONNX file of zeros",
        "predict",
        exported("model.onnx", bytes(99)),
        "{}/graph/model.onnx: cannot be read as an ONNX file.",
    ),
    Case(
        "an empty ONNX file",
        "predict",
        exported("model.onnx", b""),
        "{}/graph/model.onnx: was not exported by tools/export.py",
    ),
    Case(
        "resumed from a missing folder",
        "train",
        resume_from("absent"),
        "--resume_model {}/absent: no such folder",
    ),
    Case(
        "resumed from an empty folder",
        "train",
        resume_from("empty"),
        "--resume_model {}/empty: has no manifest.json, so it is not a checkpoint of this",
    ),
    Case(
        "resumed from a folder without manifest",
        "train",
        resume_from("foreign"),
        "--resume_model {}/foreign: has no manifest.json, so it is not a checkpoint of this",
    ),
    Case(
        "resumed from a file",
        "train",
        resume_from("foreign/model.pdparams"),
        "--resume_model {}/foreign/model.pdparams: no such folder",
    ),
    Case(
        "resumed without its optimizer",
        "train",
        resume(lambda f: (f / "model.pdopt").unlink()),
        "--resume_model {}/run/iter_1: is damaged (model.pdopt is missing or",
    ),
    Case(
        "resumed from a truncated model",
        "train",
        resume(lambda f: (f / "model.pdparams").write_bytes(b"x")),
        "--resume_model {}/run/iter_1: is damaged (model.pdparams is missing or",
    ),
    Case(
        "resumed from an empty manifest",
        "train",
        resume(lambda f: (f / "manifest.json").write_bytes(b"{}")),
        "--resume_model {}/run/iter_1: is damaged (manifest.json does not match its checksum)",
    ),
    Case(
        "resumed from the best model",
        "train",
        lambda p: [*p.train("iters=2"), "--resume_model", p.root / "run/best_model"],
        "--resume_model {}/run/best_model: has weights only, no optimizer state",
    ),
    Case(
        "resumed with another model",
        "train",
        another_model,
        "{}/run/iter_1/model.pdparams: is a checkpoint of another model",
    ),
    Case(
        "resumed with another optimizer",
        "train",
        another_optimizer,
        "{}/run/iter_1: was trained with AdamW, not Momentum",
    ),
    Case(
        "resumed from a negative iteration",
        "train",
        rewritten(lambda m: m.update(iteration=-3)),
        "--resume_model {}/run/iter_1: is damaged (manifest.json has no valid iteration, which",
    ),
    Case(
        "resumed from an iteration of 100 bits",
        "train",
        rewritten(lambda m: m.update(iteration=10**30)),
        "--resume_model {}/run/iter_1: is damaged (manifest.json has no valid iteration, which",
    ),
    Case(
        "resumed from a later iteration than the last",
        "train",
        rewritten(lambda m: m.update(iteration=9, samples=18)),
        "--iters 2: {}/run/iter_1 is at iteration 9 already; give a larger number",
    ),
    Case(
        "resumed without the data's position",
        "train",
        rewritten(lambda m: m.pop("samples")),
        "--resume_model {}/run/iter_1: is damaged (manifest.json has no valid samples, which",
    ),
    Case(
        "resumed without names of parameters",
        "train",
        rewritten(lambda m: m.update(parameters={})),
        "{}/run/iter_1/manifest.json: names other parameters than model.pdparams has.",
    ),
    Case(
        "resumed with the parameters' names in reverse order",
        "train",
        rewritten(swap_parameters),
        "{}/run/iter_1/model.pdopt: is of another model",
    ),
    Case(
        "resumed from another origin",
        "train",
        origin_is_no_checkpoint,
        "--resume: {}/out/.., from which {}/out started: has no manifest.json",
    ),
    Case(
        "resumed when all are damaged",
        "train",
        resume_all_damaged,
        "--resume: {}/run has no intact checkpoint of this program",
    ),
    Case(
        "a save_dir with a run",
        "train",
        lambda p: ["--save_dir", p.root / "run", *p.with_opts()],
        "--save_dir {}/run: holds iter_1 of an earlier run",
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

"""Checkpoints that are none, are damaged, of another model, or would run code."""

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
    """A tool on the trained model's file, after ``change`` of its bytes."""

    def make(place):
        path = place.root / "weights.pdparams"
        path.write_bytes(change((place.root / "run/best_model/model.pdparams").read_bytes()))
        return arguments(place, path, tool)

    return make


def arguments(place, path, tool="val"):
    if tool == "convert":
        return [path, place.root / "converted.pdparams"]
    if tool == "train":
        return place.train(f"model.pretrained={path}")
    model = ["--model_path", path]
    if tool == "export":
        return [*model, *place.train()[:2], "--image_path", place.image(), "--config", place.config]
    if tool == "serve":
        return [*model, "--port", 0]
    return [*place.with_opts(), *model]


def tensors(change, tool="val"):
    """A tool on the trained model, after ``change`` of its dictionary of arrays."""

    def make(place):
        state = read_saved_dict(place.root / "run/best_model/model.pdparams")
        path = place.root / "weights.pdparams"
        path.write_bytes(pickle.dumps(change(state), protocol=4))
        return arguments(place, path, tool)

    return make


def file(name, data, tool="val"):
    return lambda place: arguments(place, place.write(name, data), tool)


class Canary:
    """What would write a file if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def code(place):
    data = pickle.dumps({"a": Canary(place.root / "canary")}, protocol=4)
    return arguments(place, place.write("evil.pdparams", data))


def code_for_torch(place):
    with zipfile.ZipFile(place.root / "evil.pth", "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps(Canary(place.root / "canary"), protocol=2))
    return arguments(place, place.root / "evil.pth", "convert")


def bomb_for_torch(place):
    with zipfile.ZipFile(place.root / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(200 << 20))
    return arguments(place, place.root / "bomb.pth", "convert")


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return file("model.safetensors", struct.pack("<Q", len(text)) + text + data, "convert")


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def archive(*names, data=b""):
    """A .tar.gz of files with these names."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def gzip_bomb(place):
    data = archive("model.pdparams", data=bytes(300 << 20))
    return arguments(place, place.write("bomb.tar.gz", data), "convert")


def resume(spoil):
    """``train`` from the checkpoint, after ``spoil`` of its folder."""

    def make(place):
        spoil(place.root / "run/iter_1")
        return [*place.train("iters=2"), "--resume_model", place.root / "run/iter_1"]

    return make


def another_model(place):
    """The optimizer's state is that of the checkpoint, the model is another."""
    opts = ("iters=2", "model.embedding_dim=16")
    return [*place.train(*opts), "--resume_model", place.root / "run/iter_1"]


def another_optimizer(place):
    opts = ("iters=2", "optimizer={type: SGD, momentum: 0.9}")
    return [*place.train(*opts), "--resume_model", place.root / "run/iter_1"]


def resume_from(name):
    def make(place):
        (place.root / "foreign").mkdir()
        place.write("foreign/model.pdparams", b"x")
        (place.root / "empty").mkdir()
        return [*place.train(), "--resume_model", place.root / name]

    return make


def resume_all_damaged(place):
    (place.root / "run/iter_1/model.pdopt").write_bytes(b"")
    return ["--save_dir", place.root / "run", *place.with_opts("iters=2"), "--resume"]


def of_another_class_count(place):
    sections = ("model", "train_dataset", "val_dataset")
    return [
        *place.with_opts(*[f"{section}.num_classes=5" for section in sections]),
        *("--model_path", place.root / "run/best_model"),
    ]


def empty_folder(place):
    (place.root / "nothing").mkdir()
    return arguments(place, place.root / "nothing")


def manifest(content):
    def make(place):
        (place.root / "run/best_model/manifest.json").write_bytes(content)
        return place.predict(place.image())

    return make


def exported(name, content):
    def make(place):
        place.write(f"graph/{name}", content)
        return place.predict(place.image(), place.root / "graph")

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
WRONG = [
    Case(
        "missing", "val", lambda p: arguments(p, p.root / "no.pdparams"), "no.pdparams", alone=True
    ),
    Case("missing, to predict", "predict", lambda p: p.predict(p.image(), p.root / "no"), "no"),
    Case("missing, to export", "export", lambda p: arguments(p, p.root / "no", "export"), "no"),
    Case("missing, to convert", "convert", lambda p: arguments(p, p.root / "no", "convert"), "no"),
    Case("missing, to serve", "serve", lambda p: arguments(p, p.root / "no", "serve"), "no"),
    Case("missing, to start from", "train", lambda p: arguments(p, p.root / "no", "train"), "no"),
    Case("an empty folder", "val", empty_folder, "nothing"),
    Case("empty", "val", model(lambda data: b""), W),
    Case("empty, to predict", "predict", lambda p: p.predict(p.image(), p.write("a", b"")), "a"),
    Case("text", "val", model(lambda data: b"hello"), W),
    Case("a web page", "val", model(lambda data: b"<!DOCTYPE html><p>404"), W),
    Case("Git LFS's stand-in", "val", model(lambda data: b"version https://git-lfs\n"), W),
    Case("zeros", "val", model(lambda data: bytes(9999)), W),
    *[
        Case(f"cut at {tenth}0%", "val", model(lambda d, t=tenth: d[: len(d) * t // 10]), W)
        for tenth in (1, 3, 5, 7, 9)
    ],
    Case("cut by a byte", "convert", model(lambda data: data[:-1], "convert"), W),
    Case("runs code", "val", code, ("evil.pdparams", "io.open")),
    Case("runs code, in PyTorch's", "convert", code_for_torch, ("evil.pth", "io.open")),
    Case("a bomb in PyTorch's", "convert", bomb_for_torch, "bomb.pth"),
    Case("a bomb in an archive", "convert", gzip_bomb, "bomb.tar.gz"),
    Case("a zip of nothing", "convert", file("a.pth", b"PK\5\6" + bytes(18), "convert"), "a.pth"),
    Case(
        "an archive that climbs",
        "convert",
        file("a.tar.gz", archive("../../canary"), "convert"),
        "a.tar.gz",
    ),
    Case(
        "an archive that climbs with weights",
        "convert",
        file("a.tar.gz", archive("../../canary.pdparams", data=b"x"), "convert"),
        "a.tar.gz",
    ),
    Case(
        "an archive of two",
        "convert",
        file("a.tar.gz", archive("a.pdparams", "b.pdparams"), "convert"),
        "a.tar.gz",
    ),
    Case(
        "an archive cut",
        "convert",
        file("a.tar.gz", archive("a.pdparams")[:40], "convert"),
        "a.tar.gz",
    ),
    Case("a header that lies", "convert", safetensors({"a": TENSOR}), "model.safetensors"),
    Case(
        "a header beyond the file",
        "convert",
        file("a.safetensors", struct.pack("<Q", 1 << 60) + b"{}", "convert"),
        "a.safetensors",
    ),
    Case("a header that is no JSON", "convert", safetensors(b"{nothing"), "model.safetensors"),
    Case(
        "tensors that overlap",
        "convert",
        safetensors({"a": TENSOR, "b": TENSOR}, bytes(8)),
        "model.safetensors",
    ),
    Case(
        "sizes beyond numbers",
        "convert",
        safetensors({"a": {**TENSOR, "shape": [1 << 62, 1 << 62]}}, bytes(8)),
        "model.safetensors",
    ),
    Case("no tensors", "val", tensors(lambda state: {}), W),
    Case("a list", "val", tensors(lambda state: [1]), W),
    Case("words", "val", tensors(lambda state: {"a": np.array(["x"])}), W),
    Case("NaN", "val", tensors(nan), (W, "linear_pred.bias")),
    Case("NaN, to start from", "train", tensors(nan, "train"), (W, "linear_pred.bias")),
    Case(
        "a tensor missing",
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
    Case("another class count", "val", of_another_class_count, "best_model"),
    Case("no manifest in it", "predict", manifest(b"{}"), "manifest.json"),
    Case("a manifest of text", "predict", manifest(b"hello"), "manifest.json"),
    Case("a manifest that is a list", "predict", manifest(b"[]"), "manifest.json"),
    Case("a manifest that is binary", "predict", manifest(bytes(range(256))), "manifest.json"),
    Case("an empty description", "predict", exported("deploy.yaml", b""), "graph"),
    Case(
        "a description alone",
        "predict",
        exported(
            "deploy.yaml",
            DESCRIPTION,
        ),
        "model.json",
    ),
    Case("an ONNX file of zeros", "predict", exported("model.onnx", bytes(99)), "model.onnx"),
    Case("an empty ONNX file", "predict", exported("model.onnx", b""), "model.onnx"),
    Case("resumed from nothing", "train", resume_from("absent"), "absent"),
    Case("resumed from an empty folder", "train", resume_from("empty"), "empty"),
    Case("resumed from a foreign folder", "train", resume_from("foreign"), "foreign"),
    Case("resumed from a file", "train", resume_from("foreign/model.pdparams"), "model.pdparams"),
    Case(
        "resumed without its optimizer",
        "train",
        resume(lambda f: (f / "model.pdopt").unlink()),
        "model.pdopt",
    ),
    Case(
        "resumed from a cut model",
        "train",
        resume(lambda f: (f / "model.pdparams").write_bytes(b"x")),
        "model.pdparams",
    ),
    Case(
        "resumed from another text",
        "train",
        resume(lambda f: (f / "manifest.json").write_bytes(b"{}")),
        "iter_1",
    ),
    Case(
        "resumed from its best model",
        "train",
        lambda p: [*p.train("iters=2"), "--resume_model", p.root / "run/best_model"],
        "best_model",
    ),
    Case("resumed with another model", "train", another_model, "iter_1"),
    Case("resumed with another optimizer", "train", another_optimizer, "iter_1"),
    Case("resumed when all are damaged", "train", resume_all_damaged, "run"),
    Case(
        "a run in the folder already",
        "train",
        lambda p: ["--save_dir", p.root / "run", *p.with_opts()],
        "run",
    ),
]


@table(WRONG)
def test_wrong(case, place, tools):
    check(case, place, tools)
    assert not list(place.root.parent.rglob("canary*"))


@pytest.mark.parametrize("tool", ["val", "predict"])
def test_no_manifest_says_what_is_wanted(tool, place, tools):
    """A checkpoint alone, of an architecture that its weights tell, needs nothing else."""
    (place.root / "run/best_model/manifest.json").unlink()
    if tool == "val":
        done = tools("val", [*place.with_opts(), "--model_path", place.root / "run/best_model"])
    else:
        done = tools("predict", place.predict(place.image()))
    assert done.code == 0, done.err
    shutil.rmtree(place.out, ignore_errors=True)

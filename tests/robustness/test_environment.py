"""Machines and installations that lack what is asked for."""

import pytest

from paddleseg_segformer import device

from .cases import Case, check, table

on_cpu = pytest.mark.skipif(device.has_gpu(), reason="there is a GPU")


def train(*arguments):
    return lambda p: ["--config", p.config, "--save_dir", p.out, *arguments]


def best(place):
    return ["--model_path", place.root / "run/best_model"]


def without(package, arguments):
    """The same on an installation that has not this package."""

    def make(place):
        place.options["hidden"] = [package]
        return arguments(place)

    return make


def export_onnx(place):
    target = ["--save_dir", place.out, "--image_path", place.image()]
    return [*best(place), *target, "--format", "onnx"]


def onnx_file(place):
    return place.predict(place.image(), place.write("model.onnx", b"x"))


def busy_port(place):
    return [*best(place), "--port", 70000]


WRONG = [
    Case("no GPU", "train", train("--device", "gpu"), "--device gpu", alone=True),
    Case("no fourth GPU", "train", train("--device", "gpu:3"), "--device gpu:3"),
    Case("no such device", "train", train("--device", "nonsense"), "--device nonsense"),
    Case(
        "no device by number",
        "val",
        lambda p: ["--config", p.config, *best(p), "--device", "7"],
        "--device 7",
    ),
    Case(
        "an empty device",
        "val",
        lambda p: ["--config", p.config, *best(p), "--device", ""],
        "--device",
    ),
    Case("no XPU", "train", train("--device", "xpu"), "--device xpu"),
    Case(
        "no GPU to predict",
        "predict",
        lambda p: [*p.predict(p.image())[:-1], "gpu"],
        "--device gpu",
    ),
    Case(
        "no such device to predict",
        "predict",
        lambda p: [*p.predict(p.image())[:-1], "abc"],
        "--device abc",
    ),
    Case("no GPU to serve", "serve", lambda p: [*best(p), "--device", "gpu"], "--device gpu"),
    Case(
        "export on a GPU",
        "export",
        lambda p: [*best(p), "--image_path", p.image(), "--device", "gpu"],
        "--device gpu",
    ),
    Case(
        "half precision",
        "train",
        train("--device", "cpu", "--precision", "fp16"),
        "--precision fp16",
    ),
    Case("bfloat16", "train", train("--device", "cpu", "--precision", "bf16"), "--precision bf16"),
    Case(
        "pure half precision",
        "train",
        train("--device", "cpu", "--amp_level", "O2"),
        "--amp_level O2",
    ),
    Case("no onnx to export", "export", without("onnx", export_onnx), ("onnx", "pip install")),
    Case(
        "no paddle2onnx",
        "export",
        without("paddle2onnx", lambda p: pytest.importorskip("onnx") and export_onnx(p)),
        ("paddle2onnx", "pip install"),
    ),
    Case("no onnx to predict", "predict", without("onnx", onnx_file), ("onnx", "pip install")),
    Case("no flask", "serve", without("flask", best), ("flask", "pip install"), alone=False),
    Case("no waitress", "serve", without("waitress", best), ("waitress", "pip install")),
    Case("a port beyond ports", "serve", busy_port, "--port 70000"),
    Case(
        "a host that is not here",
        "serve",
        lambda p: [*best(p), "--host", "203.0.113.1", "--port", 0],
        "203.0.113.1",
    ),
    Case(
        "a runtime for a checkpoint",
        "predict",
        lambda p: [*p.predict(p.image()), "--runtime", "paddle"],
        "--backend paddle",
    ),
    Case("few workers", "train", train("--device", "cpu", "--num_workers", -1), "--num_workers"),
    Case(
        "opts without a config",
        "predict",
        lambda p: [*p.predict(p.image()), "--opts", "a=1"],
        "--opts",
    ),
]


@on_cpu
@table(WRONG)
def test_wrong(case, place, tools):
    check(case, place, tools)

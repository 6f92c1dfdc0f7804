"""Missing devices and packages, and invalid hosts and ports."""

import pytest

from paddleseg_segformer import device

from .cases import Case, check, table

on_cpu = pytest.mark.skipif(device.has_gpu(), reason="there is a GPU")


def train(*arguments):
    return lambda p: ["--config", p.config, "--save_dir", p.out, *arguments]


def best(workspace):
    return ["--model_path", workspace.root / "run/best_model"]


def without(package, arguments):
    """The same tool without this package."""

    def make(workspace):
        workspace.options["hidden"] = [package]
        return arguments(workspace)

    return make


def export_onnx(workspace):
    target = ["--save_dir", workspace.out, "--image_path", workspace.image()]
    return [*best(workspace), *target, "--format", "onnx"]


def onnx_file(workspace):
    return workspace.predict(workspace.image(), workspace.write("model.onnx", b"x"))


def busy_port(workspace):
    return [*best(workspace), "--port", 70000]


INVALID = [
    Case(
        "no GPU",
        "train",
        train("--device", "gpu"),
        "--device gpu: the installed Paddle is a CPU build",
    ),
    Case(
        "no GPU 3",
        "train",
        train("--device", "gpu:3"),
        "--device gpu:3: the installed Paddle is a CPU build",
    ),
    Case(
        "no such device",
        "train",
        train("--device", "nonsense"),
        "--device nonsense: Paddle cannot use it",
    ),
    Case(
        "a device by number",
        "val",
        lambda p: ["--config", p.config, *best(p), "--device", "7"],
        "--device 7: Paddle cannot use it",
    ),
    Case(
        "an empty device",
        "val",
        lambda p: ["--config", p.config, *best(p), "--device", ""],
        "argument --device: is empty",
    ),
    Case("no XPU", "train", train("--device", "xpu"), "--device xpu: Paddle cannot use it"),
    Case(
        "no GPU, predict",
        "predict",
        lambda p: [*p.predict(p.image())[:-1], "gpu"],
        "--device gpu: the installed Paddle is a CPU build",
    ),
    Case(
        "no such device, predict",
        "predict",
        lambda p: [*p.predict(p.image())[:-1], "abc"],
        "--device abc: Paddle cannot use it",
    ),
    Case(
        "no GPU, serve",
        "serve",
        lambda p: [*best(p), "--device", "gpu"],
        "--device gpu: the installed Paddle is a CPU build",
    ),
    Case(
        "export on a GPU",
        "export",
        lambda p: [*best(p), "--image_path", p.image(), "--device", "gpu"],
        "--device gpu: models are exported on the CPU.",
    ),
    Case(
        "float16 on a CPU",
        "train",
        train("--device", "cpu", "--precision", "fp16"),
        "--precision fp16: needs a GPU",
    ),
    Case(
        "bfloat16 on a CPU",
        "train",
        train("--device", "cpu", "--precision", "bf16"),
        "--precision bf16: needs a GPU",
    ),
    Case(
        "pure float16",
        "train",
        train("--device", "cpu", "--amp_level", "O2"),
        "--amp_level O2: is not supported, because checkpoints, EMA and resuming",
    ),
    Case("no onnx, export", "export", without("onnx", export_onnx), "--format onnx: needs onnx"),
    Case(
        "no paddle2onnx",
        "export",
        without(
            "paddle2onnx",
            lambda p: (
                pytest.importorskip("onnx", reason="onnx is not installed") and export_onnx(p)
            ),
        ),
        "--format onnx: needs paddle2onnx",
    ),
    Case("no onnx, predict", "predict", without("onnx", onnx_file), "{}/model.onnx: needs onnx"),
    Case("no flask", "serve", without("flask", best), "flask is not installed"),
    Case("no waitress", "serve", without("waitress", best), "waitress is not installed"),
    Case("an invalid port", "serve", busy_port, "--port 70000: must be a number from 0 to 65535."),
    Case(
        "a host of another machine",
        "serve",
        lambda p: [*best(p), "--host", "203.0.113.1", "--port", 0],
        "--host 203.0.113.1 --port 0: cannot be used (Cannot assign requested address).",
    ),
    Case(
        "a backend for a checkpoint",
        "predict",
        lambda p: [*p.predict(p.image()), "--runtime", "paddle"],
        "--backend paddle: {}/run/best_model is not an exported graph.",
    ),
    Case(
        "a negative number of workers",
        "train",
        train("--device", "cpu", "--num_workers", -1),
        "--num_workers -1: must be at least 0.",
    ),
    Case(
        "opts without a config",
        "predict",
        lambda p: [*p.predict(p.image()), "--opts", "a=1"],
        "--opts overrides keys of a config: give --config, too.",
    ),
]


@on_cpu
@table(INVALID)
def test_invalid(case, workspace, tools):
    check(case, workspace, tools)

"""Writing a model as a graph that other programs run."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import paddle
import yaml
from paddle.static import InputSpec
from paddleseg.cvlibs import Config
from paddleseg.transforms import Compose, Normalize

from ..config import build
from ..data.image_io import read_image
from ..device import set_device, tune_cpu
from ..errors import InputError, RunError
from ..fs import StrPath, check_dir_writable
from ..inference.backends import OnnxRuntime, PaddleInference
from ..inference.model_source import DESCRIPTION, METADATA, inference_config, resolve_model
from ..inference.segmenter import load_model
from ..models import MIN_IMAGE_SIZE
from .export_model import ExportModel

OPSET = 17  # the first with LayerNormalization
FILES = {"paddle": ["model.json", "model.pdiparams", DESCRIPTION], "onnx": ["model.onnx"]}
# Without Paddle2ONNX's optimizer, which fetches packages when it is first used, and takes the
# minutes that it is known for: the runtimes fold constants themselves.
CONVERT = (
    "import sys, paddle2onnx; paddle2onnx.export(*sys.argv[1:4], "
    "opset_version=int(sys.argv[4]), optimize_tool=None)"
)
AGREEMENT = 0.999  # share of pixels; rounding decides the others


@contextlib.contextmanager
def _on_cpu():
    """Within, Paddle works on the CPU; afterwards where it did before."""
    tune_cpu()
    device = paddle.get_device()
    set_device("cpu")
    try:
        yield
    finally:
        paddle.set_device(device)


@_on_cpu()
def export(
    model_path: StrPath,
    save_dir: StrPath,
    image_path: StrPath,
    config: Config | StrPath | None = None,
    format: str = "paddle",
    input_shape: Sequence[int] | None = None,
    output_op: str = "argmax",
    with_normalize: bool = False,
    half: bool = False,
) -> float:
    """Export a model, on the CPU, and compare its graph with it on an image.

    Args:
        model_path: As ``source`` of ``resolve_model``.
        save_dir: Folder to write to: ``model.json``, ``model.pdiparams`` and ``deploy.yaml``, or
            ``model.onnx``, which holds the last one's text as metadata. An earlier export there,
            of either format, is replaced; a kill leaves the one, the other or none.
        image_path: The image.
        config: As in ``resolve_model``.
        format: ``"paddle"`` or ``"onnx"``.
        input_shape: ``(N, C, H, W)`` for which alone the graph is; None is for any.
        output_op: ``"argmax"``, ``"softmax"`` or ``"none"``; see ``ExportModel``.
        with_normalize: Whether the graph normalizes images of 0 to 255 itself.
        half: Whether weights and arithmetic are float16, in ONNX.

    Returns:
        The share of the image's pixels to which model and graph give the same class.

    Raises:
        InputError: There is no such model or image, or the format cannot do what is asked for.
        RunError: The graph's label map differs from the model's; nothing is left.
    """
    if half and format != "onnx":
        raise InputError("--half: is for --format onnx.")
    shape = list(input_shape or (-1, 3, -1, -1))
    any_size = shape[2:] == [-1, -1]
    if (
        shape[0] not in (-1, 1)
        or shape[1] != 3
        or not (any_size or min(shape[2:]) >= MIN_IMAGE_SIZE)
    ):
        raise InputError(
            f"--input_shape {' '.join(map(str, shape))}: must be 1 3 H W, at least "
            f"{MIN_IMAGE_SIZE} pixels a side, or 1 3 -1 -1 for any size."
        )
    product = resolve_model(model_path, config)
    if product.output_op is not None:
        raise InputError(f"{model_path}: is an exported graph already; give a checkpoint.")
    outside, inside = _split(product.config, with_normalize)
    description = _describe(product, outside, shape, output_op)
    model = load_model(product.config, product.weights)
    graph = ExportModel(model, output_op, inside)
    image = _network_input(image_path, outside, shape)
    check_dir_writable(save_dir)
    with tempfile.TemporaryDirectory(dir=save_dir) as folder:
        folder = Path(folder)
        write_paddle(graph, shape, folder)
        if format == "onnx":
            convert_to_onnx(folder, description, half)
            runtime = OnnxRuntime(folder / "model.onnx")
        else:
            (folder / DESCRIPTION).write_text(description, encoding="utf-8")
            try:
                runtime = PaddleInference(folder)
            except RuntimeError as error:  # Paddle writes on where a disk is full
                raise RunError(
                    f"--save_dir {save_dir}: the graph cannot be read again, as if the disk were "
                    "full; nothing was written."
                ) from error
        images = [image]
        if any_size:  # and not that alone at which the graph was written down
            images.append(np.ascontiguousarray(image[:, :, : image.shape[2] // 2 + MIN_IMAGE_SIZE]))
        agreement = min(_compare(model, graph, runtime, image) for image in images)
        if agreement < AGREEMENT:
            raise RunError(
                f"The graph agrees with the model on only {agreement:.2%} of the pixels of "
                f"{image_path}; nothing was written."
            )
        if format == "paddle":  # without it the others are no export; it comes last
            (Path(save_dir) / DESCRIPTION).unlink(missing_ok=True)
        for name in FILES[format]:
            os.replace(folder / name, Path(save_dir) / name)
    for name in FILES["onnx" if format == "paddle" else "paddle"]:  # which is of another model
        (Path(save_dir) / name).unlink(missing_ok=True)
    return agreement


def _describe(product, transforms, shape, output_op):
    """The text of ``deploy.yaml``."""
    deploy = {
        "model": "model.json",
        "params": "model.pdiparams",
        "transforms": transforms,
        "input_shape": shape,
        "output_op": output_op,
        "output_dtype": "int32" if output_op == "argmax" else "float32",
    }
    return yaml.safe_dump(
        {"Deploy": deploy, "classes": product.classes, "palette": product.palette.tolist()},
        allow_unicode=True,
        default_flow_style=None,
        sort_keys=False,
    )


def _split(config, with_normalize):
    """The transforms outside of the graph, and the Normalize that goes into it, or None."""
    options = config.val_dataset_cfg["transforms"]
    if not with_normalize:
        return options, None
    last = build(config, "val_transforms")[0][-1:]
    if not (last and isinstance(last[0], Normalize)):
        raise InputError("--with_normalize: the last of the validation transforms is no Normalize.")
    return options[:-1], last[0]


def _network_input(image_path, transforms, shape):
    """An image as the graph takes it: float32 array ``[1, 3, H, W]``."""
    components = build(inference_config({"num_classes": 1}, transforms), "val_transforms")[0]
    sample = {"img": read_image(image_path).astype("float32"), "trans_info": []}
    image = Compose(components)(sample)["img"].astype("float32")
    if -1 not in shape[2:]:
        image = cv2.resize(image.transpose(1, 2, 0), shape[:1:-1]).transpose(2, 0, 1)
    return np.ascontiguousarray(image[None])


@paddle.no_grad()
def _compare(model, graph, runtime, images):
    """The share of the pixels to which the model itself and the runtime give the same class."""
    expected = model(graph.prepare(paddle.to_tensor(images)))[0].argmax(axis=1).numpy()
    found = runtime(images)
    found = found if found.ndim == 3 else found.argmax(axis=1)
    return float((found == expected).mean())


def write_paddle(graph, shape, folder):
    """Write a graph as Paddle Inference's ``model.json`` and ``model.pdiparams``.

    Args:
        graph: A layer of one input.
        shape: Of the input; -1 is for any size.
        folder: Path of a folder that exists.
    """
    spec = InputSpec([None if side == -1 else side for side in shape], "float32", "x")
    paddle.jit.save(graph, str(folder / "model"), input_spec=[spec])


def convert_to_onnx(folder, description="", half=False):
    """Write ``model.onnx`` beside a folder's ``model.json``.

    Args:
        folder: Path.
        description: Text for the file's metadata.
        half: Whether weights and arithmetic become float16.
    """
    for name in ("onnx", "paddle2onnx", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise InputError(f"--format onnx: needs {name}; pip install -r requirements-onnx.txt.")
    import onnx

    path = str(folder / "model.onnx")
    files = [str(folder / name) for name in ("model.json", "model.pdiparams", "model.onnx")]
    # In a process of its own, which what it cannot convert ends.
    command = [sys.executable, "-c", CONVERT, *files, str(OPSET)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InputError(
            "--format onnx: Paddle2ONNX cannot convert this model; try it for one size, with "
            "--input_shape."
        )
    model = onnx.load(path)
    if half:
        from onnxruntime.transformers.float16 import convert_float_to_float16

        for node in model.graph.node:
            if node.op_type == "Resize":  # by size; that its scales are empty, it then forgets
                node.input[2] = ""
        model = convert_float_to_float16(model, keep_io_types=True)
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA, description
    onnx.save(model, path)

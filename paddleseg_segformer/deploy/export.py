"""Export of a model to Paddle Inference or ONNX."""

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
from paddleseg.transforms import Normalize

from ..config import build
from ..data.image_io import TypeCheck, read_image
from ..data.scenes import draw_scene
from ..data.transforms import Compose
from ..device import set_device, tune_cpu
from ..errors import InputError, RunError
from ..fs import StrPath, as_list, named_write_error, output_dir
from ..inference.backends import GRAPH_FILE, GRAPH_FILES, OnnxRuntime, PaddleInference
from ..inference.model_source import DESCRIPTION, ONNX_METADATA_KEY, inference_config, resolve_model
from ..inference.segmenter import load_model
from ..log import logger
from ..models import MIN_IMAGE_SIZE
from .export_model import ExportModel
from .quantize import MIN_INT8_AGREEMENT, check_quantizer, find_calibration_images, quantize

OPSET = 17  # the first with LayerNormalization
FILES = {"paddle": [GRAPH_FILE, "model.pdiparams", DESCRIPTION], "onnx": ["model.onnx"]}
# Without Paddle2ONNX's optimizer, which downloads packages on first use and takes minutes; the
# backends fold constants themselves. Versions for Paddle 2 have no optimizer.
CONVERT = """
import inspect, sys
try:
    import paddle2onnx
except Exception:  # it is for another version of Paddle
    sys.exit(3)
accepted = inspect.signature(paddle2onnx.export).parameters
options = {name: None for name in ("optimize_tool",) if name in accepted}
paddle2onnx.export(*sys.argv[1:4], opset_version=int(sys.argv[4]), **options)
"""
SCENE_SIZE = (512, 384)
MAX_SIDE = 16384  # pixels of a fixed input
MIN_AGREEMENT = 0.999  # share of pixels; ties in the others are decided by rounding


@contextlib.contextmanager
def _on_cpu():
    """Context manager: use the CPU, then restore the device."""
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
    image_path: StrPath | None = None,
    config: Config | StrPath | None = None,
    format: str | None = None,
    input_shape: Sequence[int] | None = None,
    output_op: str = "argmax",
    with_normalize: bool = False,
    half: bool = False,
    int8: bool = False,
    min_agreement: float | None = None,
) -> float:
    """Export a model, on the CPU, and compare the graph's label map with the model's on an image.

    Args:
        model_path: ``source`` of ``resolve_model``.
        save_dir: Folder to write ``model.json`` (Paddle 2.6: ``model.pdmodel``),
            ``model.pdiparams`` and ``deploy.yaml`` to, or ``model.onnx``, with the text of
            ``deploy.yaml`` in its metadata. An earlier export in it, of either format, is replaced;
            if the process is killed, the folder holds the old export, the new one or none.
        image_path: The image; None means the first validation image of the config, or a drawn one
            if that cannot be read. For int8: several images, as in ``find_images``.
        config: As in ``resolve_model``.
        format: ``"paddle"`` or ``"onnx"``; None means ONNX with int8, else Paddle.
        input_shape: Fixed ``(N, C, H, W)`` of the graph; None means any image size.
        output_op: ``"argmax"``, ``"softmax"`` or ``"none"``; see ``ExportModel``.
        with_normalize: Whether the graph includes the normalization, for inputs on the 8-bit scale.
        half: Whether weights and arithmetic are float16, in ONNX.
        int8: Whether convolutions and matrix products are quantized to int8, in ONNX. The images
            but every fourth are used to calibrate it.
        min_agreement: With int8, the smallest share of the pixels of the other images, 0 to 1, on
            which int8 graph and float graph must agree; None means ``MIN_INT8_AGREEMENT``.

    Returns:
        The share of the image's pixels with the same class from model and graph; with int8, the
        share of the held-out images' pixels with the same class from float graph and int8 graph.

    Raises:
        InputError: The model or image cannot be read, or the format does not support the options.
        RunError: The graph's label map differs from the model's, or the int8 graph's too much from
            the float graph's; nothing is written.
    """
    format = format or ("onnx" if int8 else "paddle")
    if half and format != "onnx":
        raise InputError("--half: needs --format onnx.")
    if int8 and (format != "onnx" or half):
        raise InputError("--int8: needs --format onnx, and no --half.")
    if int8 and image_path is None:
        raise InputError("--int8: needs --image_path, several images to calibrate on.")
    if min_agreement is None:
        min_agreement = MIN_INT8_AGREEMENT
    elif not int8 or not 0 <= min_agreement <= 1:
        raise InputError(f"--min_agreement {min_agreement}: needs --int8, and must be 0 to 1.")
    if int8:
        calibration, held_out = find_calibration_images(image_path)
        check_quantizer()
        image_path = held_out[0]
    source = resolve_model(model_path, config)
    if source.output_op is not None:
        raise InputError(f"{model_path}: is an exported graph already; pass a checkpoint.")
    channels = source.channels
    shape = list(input_shape or (-1, channels, -1, -1))
    any_size = shape[2:] == [-1, -1]
    is_size_valid = any_size or all(MIN_IMAGE_SIZE <= side <= MAX_SIDE for side in shape[2:])
    if shape[0] not in (-1, 1) or shape[1] != channels or not is_size_valid:
        sizes = f"H W, {MIN_IMAGE_SIZE} to {MAX_SIDE} pixels a side, or 1 {channels} -1 -1 for any"
        given = " ".join(map(str, shape))
        raise InputError(f"--input_shape {given}: must be 1 {channels} {sizes}.")
    transforms, normalize = _split_transforms(source.config, with_normalize)
    description = _describe(source, transforms, shape, output_op)
    model = load_model(source.config, source.weights)
    graph, check_type = ExportModel(model, output_op, normalize), TypeCheck(source.image_types)
    if image_path is None:
        image_path, pixels = _find_image(source.config, channels)
        logger.info("Comparing the export with the original model on %s", image_path)
    else:
        pixels = read_image(image_path, channels, check_type)
    images = [_network_input(pixels, transforms, shape)]
    if any_size:  # compare at another size than the traced one, too
        height = images[0].shape[2]
        images.append(np.ascontiguousarray(images[0][:, :, : height // 2 + MIN_IMAGE_SIZE]))
    # Before the graph is traced, after which Paddle 3.0 cannot run the model any more.
    expected = [_label_map(model, graph, image) for image in images]

    def network_input(path):
        return _network_input(read_image(path, channels, check_type), transforms, shape)

    with contextlib.ExitStack() as stack:
        stack.enter_context(output_dir(save_dir))
        stack.enter_context(named_write_error(f"--save_dir {save_dir}"))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=save_dir)))
        write_paddle(graph, shape, folder)
        if format == "onnx":
            convert_to_onnx(folder, description, half)
            backend = OnnxRuntime(folder / "model.onnx")
        else:
            (folder / DESCRIPTION).write_text(description, encoding="utf-8")
            try:
                backend = PaddleInference(folder)
            except RuntimeError as error:  # Paddle ignores write errors on a full disk
                raise RunError(
                    f"--save_dir {save_dir}: the written graph cannot be read; is the disk full? "
                    "Nothing was written."
                ) from error
        agreement = min(_agreement(backend, *pair) for pair in zip(images, expected))
        if agreement < MIN_AGREEMENT:
            share = f"only {agreement:.2%} of the pixels of {image_path}"
            raise RunError(f"The graph agrees with the model on {share}; nothing was written.")
        if int8:
            graph_path, classes = folder / "model.onnx", source.classes
            scores = quantize(
                graph_path, calibration, held_out, network_input, classes, min_agreement
            )
            agreement = scores.accuracy
        if format == "paddle":  # moved last: without it, the other files are no valid export
            for name in (DESCRIPTION, *GRAPH_FILES):
                (Path(save_dir) / name).unlink(missing_ok=True)
        for name in FILES[format]:
            os.replace(folder / name, Path(save_dir) / name)
    stale = FILES["onnx"] if format == "paddle" else {*FILES["paddle"], *GRAPH_FILES}
    for name in stale:  # of an earlier export
        (Path(save_dir) / name).unlink(missing_ok=True)
    return agreement


def _describe(source, transforms, shape, output_op):
    """The text of ``deploy.yaml``."""
    deploy = {
        "model": GRAPH_FILE,
        "params": "model.pdiparams",
        "transforms": transforms,
        "input_shape": shape,
        "output_op": output_op,
        "output_dtype": "int32" if output_op == "argmax" else "float32",
    }
    tree = {"Deploy": deploy, "classes": source.classes, "palette": source.palette.tolist()}
    if source.image_types:
        tree["image_types"] = source.image_types
    return yaml.safe_dump(tree, allow_unicode=True, default_flow_style=None, sort_keys=False)


def _split_transforms(config, with_normalize):
    """The config of the transforms before the graph, and the ``Normalize`` in the graph or None."""
    options = config.val_dataset_cfg["transforms"]
    if not with_normalize:
        return options, None
    last = next(reversed(build(config, "val_transforms")[0]), None)
    if not isinstance(last, Normalize):
        raise InputError("--with_normalize: the last validation transform must be Normalize.")
    return options[:-1], last


def _find_image(config, channels):
    """Name and pixels of the first validation image, or of a drawn one if that cannot be read.

    The drawn one is RGB; other models get its channels, repeated, and models of floats in units of
    their own get values in these units.
    """
    # Without this check, datasets of PaddleSeg download gigabytes.
    roots = as_list(config.val_dataset_cfg.get("dataset_root"))
    if roots and all(map(os.path.isdir, roots)):
        with contextlib.suppress(InputError, IndexError):
            (dataset,) = build(config, "val_dataset")
            path = str(dataset.file_list[0][0])
            return path, read_image(path, channels)
    scene = draw_scene(np.random.default_rng(0), SCENE_SIZE)[0]
    pixels = scene[:, :, np.arange(channels) % 3]
    for transform in build(config, "val_transforms")[0]:
        if isinstance(transform, Normalize) and transform.mean.max() > 1:
            units = (pixels / 127.5 - 1) * transform.std + transform.mean
            pixels = (255 * units).astype("float32")  # on the 8-bit scale
    return "a drawn image", pixels[:, :, 0] if channels == 1 else pixels


def _network_input(pixels, transforms, shape):
    """The graph's input for an image of ``read_image``: float32 array ``[1, C, H, W]``."""
    (components,) = build(inference_config({"num_classes": 1}, transforms), "val_transforms")
    image = Compose(components)({"img": pixels})["img"].astype("float32")
    if -1 not in shape[2:]:
        image = np.atleast_3d(cv2.resize(image.transpose(1, 2, 0), shape[:1:-1]))
        image = image.transpose(2, 0, 1)
    return np.ascontiguousarray(image[None])


@paddle.no_grad()
def _label_map(model, graph, image):
    """The model's label map of a network input, int64 ``[1, H, W]``."""
    return model(graph.prepare(paddle.to_tensor(image)))[0].argmax(axis=1).numpy()


def _agreement(backend, image, expected):
    """The share of pixels with the same class from the exported graph."""
    actual = backend(image)
    actual = actual if actual.ndim == 3 else actual.argmax(axis=1)
    return float((actual == expected).mean())


def write_paddle(graph, shape, folder):
    """Write Paddle Inference's graph and ``model.pdiparams`` to a folder, a ``Path``.

    ``graph`` is a layer with one input; in its ``shape``, -1 means any size.
    """
    spec = InputSpec([None if side == -1 else side for side in shape], "float32", "x")
    paddle.jit.save(graph, str(folder / "model"), input_spec=[spec])


def convert_to_onnx(folder, description="", half=False):
    """Convert a folder's graph to ``model.onnx``; if ``half``, to float16.

    ``description`` is the text of ``deploy.yaml``, for the metadata.

    Raises:
        InputError: A package is not installed, or Paddle2ONNX does not support the model.
    """
    for name in ("onnx", "paddle2onnx", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise InputError(f"--format onnx: needs {name}; pip install -r requirements-onnx.txt.")
    import onnx

    files = [str(folder / name) for name in (GRAPH_FILE, "model.pdiparams", "model.onnx")]
    # In a subprocess, because Paddle2ONNX aborts the process on a model it does not support.
    command = [sys.executable, "-c", CONVERT, *files, str(OPSET)]
    code = subprocess.run(command, capture_output=True).returncode
    if code == 3:
        reason = f"the installed paddle2onnx is not for PaddlePaddle {paddle.__version__}"
        hint = "use 2.1 or newer with Paddle 3, and pip install 'paddle2onnx<2' with Paddle 2.6"
        raise InputError(f"--format onnx: {reason}; {hint}.")
    if code:
        hint = "try a fixed size with --input_shape"
        raise InputError(f"--format onnx: Paddle2ONNX cannot convert this model; {hint}.")
    model = onnx.load(files[-1])
    if half:
        from onnxruntime.transformers.float16 import convert_float_to_float16

        for node in model.graph.node:
            if node.op_type == "Resize":  # by sizes; the conversion would break its empty scales
                node.input[2] = ""
        model = convert_float_to_float16(model, keep_io_types=True)
    model.metadata_props.add(key=ONNX_METADATA_KEY, value=description)
    onnx.save(model, files[-1])

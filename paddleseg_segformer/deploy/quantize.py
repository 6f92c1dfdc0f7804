"""Quantization of an exported ONNX graph to int8, calibrated and verified on images."""

import os
from pathlib import Path

from ..engine.metrics import Scores, confusion_matrix
from ..errors import InputError, RunError
from ..inference.backends import OnnxRuntime
from ..inference.predict_files import VIDEO_ENDINGS, find_images
from ..log import logger

MAX_IMAGES = 100
"""Number of images that are used, evenly spaced ones of more. ONNX Runtime 1.23 and older keeps the
graph's output for each of them in memory."""

MIN_INT8_AGREEMENT = 0.98
"""Default bound: pixel accuracy falls by at most 0.02. B0 of Cityscapes has 0.991 on CamVid,
and 0.994 if the images are enlarged to 960x720."""


def find_calibration_images(image_path):
    """Find the images to calibrate on, and those to verify with, every fourth.

    Args:
        image_path: As in ``find_images``; videos are left out.

    Returns:
        Two disjoint lists of paths, together at most ``MAX_IMAGES``.

    Raises:
        InputError: There are fewer than two images.
    """
    root, names = find_images(image_path)
    images = (name for name in names if name.suffix.lower() not in VIDEO_ENDINGS)
    paths = list(dict.fromkeys(root / name for name in images))  # a list may repeat one
    if len(paths) < 2:
        hint = "pass a folder, pattern or list of images like those that the model is for"
        raise InputError(f"--image_path {image_path}: --int8 needs several images; {hint}.")
    paths = paths[:: -(-len(paths) // MAX_IMAGES)]
    held_out = paths[::4]
    return [path for path in paths if path not in held_out], held_out


def check_quantizer():
    """Raise an ``InputError`` if a package that the quantizer needs is not installed."""
    try:
        import onnxruntime.quantization  # noqa: F401
    except ImportError as error:
        hint = "pip install -r requirements-onnx.txt"
        raise InputError(f"--int8: needs {error.name}; {hint}.") from error


def quantize(path, calibration, held_out, network_input, classes, min_agreement):
    """Quantize an ONNX file of ``convert_to_onnx`` to int8, in place.

    Args:
        path: The file.
        calibration: Paths of the images to calibrate on.
        held_out: Paths of the images to verify with.
        network_input: Function that returns a path's input of the graph, float32 ``[1, C, H, W]``.
        classes: Class names.
        min_agreement: The smallest share of the pixels of the held-out images, 0 to 1, on which the
            quantized graph must have the float graph's class.

    Returns:
        The ``Scores`` of the quantized graph, with the float graph's label maps as ground truth.

    Raises:
        RunError: The graphs agree on fewer pixels; the file is then still the float graph.
    """
    import onnx
    import onnxruntime
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logger.info("Calibrating int8 on %d images", len(calibration))
    prepared, quantized = (str(Path(path).with_name(f"{x}.onnx")) for x in ("prepared", "int8"))
    onnxruntime.set_default_logger_severity(3)  # no warnings about unused constants
    # Folds constants, so that weights are initializers. Shapes are not needed, only types.
    quant_pre_process(str(path), prepared, skip_symbolic_shape=True)
    graph = onnx.load(prepared).graph
    quantize_static(
        prepared,
        quantized,
        _Reader(graph.input[0].name, calibration, network_input),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "MatMul"],
        nodes_to_exclude=_float_nodes(graph),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        reduce_range=True,  # 7 bits: without VNNI, x86 processors add two products in 16 bits
        extra_options={
            # Followed by a bias, whose sum has another range; and slower otherwise.
            "OpTypesToExcludeOutputQuantization": ["MatMul"],
            # Means of the images' minima and maxima: outliers would cost resolution.
            "CalibMovingAverage": True,
        },
    )
    scores = compare(OnnxRuntime(path), OnnxRuntime(quantized), held_out, network_input, classes)
    count = f"{len(held_out)} held-out image{'s' * (len(held_out) > 1)}"
    figures = f"{scores.accuracy:.2%} of the pixels of {count}, mIoU {scores.miou:.3f}"
    if scores.accuracy < min_agreement:
        problem = f"the int8 graph agrees with the float graph on only {figures}"
        hint = "calibrate on more images like those in use, or accept less with --min_agreement"
        raise RunError(f"--int8: {problem}; nothing was written; {hint}.")
    logger.info("The int8 graph agrees with the float graph on %s", figures)
    model = onnx.load(quantized)
    del model.metadata_props[:]
    model.metadata_props.extend(onnx.load(path).metadata_props)
    onnx.save(model, quantized)
    os.replace(quantized, path)
    return scores


def compare(expected, actual, paths, network_input, classes):
    """The ``Scores`` of one backend's label maps, with those of another as ground truth.

    ``expected`` and ``actual`` are backends; ``paths``, ``network_input`` and ``classes`` are as in
    ``quantize``.
    """
    confusion = 0
    for path in paths:
        image = network_input(path)
        labels = [_label_maps(backend(image)) for backend in (expected, actual)]
        confusion = confusion + confusion_matrix(*labels, len(classes), ignore_index=-1)
    return Scores(confusion, classes)


def _label_maps(output):
    return output if output.ndim == 3 else output.argmax(axis=1)


class _Reader:
    """The quantizer's source of inputs, one image at a time."""

    def __init__(self, input_name, paths, network_input):
        self._inputs = ({input_name: network_input(path)} for path in paths)

    def get_next(self):
        """The inputs of the next image by name, or None."""
        return next(self._inputs, None)


def _float_nodes(graph):
    """Names of the convolutions and matrix products that are not quantized.

    Of the first convolution, the output needs more than 8 bits. Depthwise convolutions and products
    of two feature maps (attention) would cost accuracy, too, and not become faster.
    """
    weights = {tensor.name for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    depthwise = [n for n in convolutions if any(a.name == "group" and a.i > 1 for a in n.attribute)]
    products = [
        node for node in graph.node if node.op_type == "MatMul" and weights.isdisjoint(node.input)
    ]
    return [node.name for node in (*convolutions[:1], *depthwise, *products)]

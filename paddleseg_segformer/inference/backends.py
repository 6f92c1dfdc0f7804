"""Running an exported graph: by Paddle Inference, ONNX Runtime or OpenVINO, all on the CPU.

Each class takes a path, and is called with a float32 array ``[N, 3, H, W]``.
"""

import threading
from pathlib import Path

import cv2
import numpy as np
import paddle
import paddle.nn.functional as F

from ..device import num_threads
from ..errors import InputError, one_line
from .segmenter import Segmenter
from .test_config import TestConfig


class PaddleInference:
    """``model.json`` and ``model.pdiparams`` in a folder."""

    def __init__(self, folder):
        from paddle import inference

        files = [Path(folder) / name for name in ("model.json", "model.pdiparams")]
        for file in files:
            if not file.is_file():  # Paddle would make up the weights
                raise InputError(f"{file}: does not exist; export the model again.")
        options = inference.Config(*map(str, files))
        options.disable_glog_info()
        options.disable_mkldnn()  # Paddle 3.3.1's oneDNN does not know all of the graph's operators
        options.set_cpu_math_library_num_threads(num_threads())
        self._predictor = inference.create_predictor(options)
        (name,) = self._predictor.get_input_names()
        self._input = self._predictor.get_input_handle(name)
        (name,) = self._predictor.get_output_names()
        self._output = self._predictor.get_output_handle(name)

    def __call__(self, images):
        self._input.reshape(images.shape)
        self._input.copy_from_cpu(images)
        self._predictor.run()
        paddle.base.core.set_num_threads(num_threads())  # of which a run leaves Paddle one
        return self._output.copy_to_cpu()


class OnnxRuntime:
    """An ONNX file."""

    def __init__(self, path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # it warns of constants that nothing uses
        options.intra_op_num_threads = num_threads()
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        (entry,) = self._session.get_inputs()
        self._name = entry.name

    def __call__(self, images):
        return self._session.run(None, {self._name: images})[0]


class OpenVino:
    """An ONNX file, which OpenVINO reads as it is."""

    def __init__(self, path):
        import openvino

        options = {
            "INFERENCE_NUM_THREADS": num_threads(),
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._model = openvino.Core().compile_model(str(path), "CPU", options)

    def __call__(self, images):
        return self._model(images)[0]


class LockedBackend:
    """A graph that several threads may call: each waits for its turn."""

    def __init__(self, graph):
        self._graph, self._lock = graph, threading.Lock()

    def __call__(self, images):
        """The graph's output, an array of its own.

        Raises:
            InputError: The graph does not take images of this size.
        """
        try:
            with self._lock:
                output = np.array(self._graph(images))
            if output.size == 0:  # OpenVINO's on one thread, where others raise
                raise ValueError("nothing comes out of it")
            return output
        except Exception as error:  # each runtime has errors of its own
            height, width = images.shape[2:]
            reason = one_line(error)[:200]
            raise InputError(
                f"The graph does not take an image of {width}x{height} ({reason})."
            ) from error


ONNX_BACKENDS = {"openvino": OpenVino, "onnxruntime": OnnxRuntime}
BACKENDS = {"paddle": PaddleInference, **ONNX_BACKENDS}
"""What runs an exported graph, by name: Paddle's own, or of an ONNX file the fastest first."""


def open_backend(path, name=None):
    """Open an exported graph.

    Args:
        path: A folder with Paddle Inference's two files, or an ONNX file.
        name: Of ``BACKENDS``; None takes the fastest of those that are installed.

    Raises:
        InputError: The file cannot be read, or no runtime for it is installed.
    """
    wanted = {"paddle": PaddleInference} if Path(path).is_dir() else ONNX_BACKENDS
    if name is not None:
        if name not in wanted:
            raise InputError(f"--backend {name}: does not read {path}; use {' or '.join(wanted)}.")
        wanted = {name: wanted[name]}
    for runtime in wanted.values():
        try:
            return LockedBackend(runtime(path))
        except ImportError:
            continue
        except InputError:
            raise
        except Exception as error:  # each runtime has errors of its own
            reason = one_line(error)
            raise InputError(f"{path}: cannot be opened ({reason}).") from error
    raise InputError(
        f"{path}: needs {' or '.join(wanted)}; pip install 'paddleseg-segformer[onnx]'."
    )


def make_segmenter(graph, product, transforms, test_config):
    """What labels images by a graph: called like ``Segmenter``.

    Args:
        graph: What ``open_backend`` returned.
        product: ``ModelSource`` of the graph.
        transforms: PaddleSeg's ``Compose`` of its transforms.
        test_config: ``TestConfig``.

    Raises:
        InputError: The test_config asks for what label maps and probabilities do not allow.
    """
    size = tuple(product.input_shape[2:])
    size = None if -1 in size else size
    if product.output_op == "none":
        return Segmenter(GraphLogitsModel(graph, size), transforms, test_config)
    if test_config != TestConfig():
        raise InputError(
            f"A graph whose output is {product.output_op} sees each image once and whole; export "
            "it with --output_op none for scales, mirrored views and windows."
        )
    return GraphSegmenter(graph, size, transforms)


class GraphLogitsModel:
    """A graph that returns logits, as the model that it was.

    Args:
        graph: What ``open_backend`` returned.
        size: ``(H, W)`` that images are resized to, or None.
    """

    def __init__(self, graph, size):
        self.graph, self.size = graph, size

    def __call__(self, images):
        if self.size is not None and tuple(images.shape[2:]) != self.size:
            images = F.interpolate(images, self.size, mode="bilinear")
        return [paddle.to_tensor(self.graph(images.numpy()))]


class GraphSegmenter:
    """Labels images by a graph that returns label maps or probabilities.

    Where the transforms or the graph's own size change an image's, probabilities are resized
    bilinearly, and label maps to the nearest pixel.

    Args:
        graph: What ``open_backend`` returned.
        size: ``(H, W)`` that images are resized to, or None.
        transforms: PaddleSeg's ``Compose``.
    """

    def __init__(self, graph, size, transforms):
        self.graph, self.size, self.transforms = graph, size, transforms

    def views(self, image):
        """The one look at an image, a uint8 array ``[H, W, 3]``, BGR."""
        return [self.transforms({"img": image.astype("float32"), "trans_info": []})]

    def __call__(self, images):
        """Label maps, integer arrays ``[H, W]``, of a list of images' ``views``."""
        return [self._label(sample["img"], sample["trans_info"]) for (sample,) in images]

    def _label(self, image, trans_info):
        if self.size is not None and image.shape[1:] != self.size:
            trans_info = [*trans_info, ("resize", image.shape[1:])]
            image = cv2.resize(image.transpose(1, 2, 0), self.size[::-1]).transpose(2, 0, 1)
        scores = self.graph(np.ascontiguousarray(image[None], dtype="float32"))[0]
        labels = scores.ndim == 2
        scores = scores if labels else np.ascontiguousarray(scores.transpose(1, 2, 0))
        for kind, (height, width) in reversed(trans_info):
            if kind == "resize":
                way = cv2.INTER_NEAREST if labels else cv2.INTER_LINEAR
                scores = cv2.resize(scores, (int(width), int(height)), interpolation=way)
            else:  # padding, at the right and the bottom
                scores = scores[:height, :width]
        return scores if labels else scores.argmax(axis=2)

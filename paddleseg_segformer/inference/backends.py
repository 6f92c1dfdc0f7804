"""Inference backends for exported graphs: Paddle Inference, ONNX Runtime, OpenVINO; on the CPU.

Each backend is constructed from a path, and called with a float32 array ``[N, C, H, W]``.
"""

import threading
from pathlib import Path

import cv2
import numpy as np
import paddle
import paddle.nn.functional as F

from ..data.transforms import Compose
from ..device import num_threads
from ..errors import InputError, one_line
from .segmenter import MAX_PARALLEL_INPUTS, Segmenter
from .test_config import TestConfig

# The graph as Paddle 3 and as Paddle 2 writes it. Paddle 3 reads both, Paddle 2 only its own.
GRAPH_FILES = ("model.json", "model.pdmodel")
GRAPH_FILE = GRAPH_FILES[0] if paddle.base.framework.use_pir_api() else GRAPH_FILES[1]


class PaddleInference:
    """Paddle Inference; the path is a folder with ``model.pdiparams`` and the graph's file."""

    def __init__(self, folder):
        from paddle import inference

        readable = GRAPH_FILES[GRAPH_FILES.index(GRAPH_FILE) :]
        present = (name for name in readable if (Path(folder) / name).is_file())
        files = [Path(folder) / name for name in (next(present, GRAPH_FILE), "model.pdiparams")]
        for file in files:
            if not file.is_file():  # Paddle would use random weights
                raise InputError(f"{file}: does not exist; export the model again.")
        options = inference.Config(*map(str, files))
        options.disable_glog_info()
        options.disable_mkldnn()  # Paddle 3.3.1's oneDNN lacks some operators of the graph
        self._threads = num_threads()
        options.set_cpu_math_library_num_threads(self._threads)
        self._predictor = inference.create_predictor(options)
        self._input = self._predictor.get_input_handle(*self._predictor.get_input_names())
        self._output = self._predictor.get_output_handle(*self._predictor.get_output_names())

    def __call__(self, images):
        self._input.reshape(images.shape)
        self._input.copy_from_cpu(images)
        self._predictor.run()
        paddle.base.core.set_num_threads(self._threads)  # the run sets it to 1 for all of Paddle
        return self._output.copy_to_cpu()


class OnnxRuntime:
    """ONNX Runtime; the path is an ONNX file."""

    def __init__(self, path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # no warnings about unused constants
        options.intra_op_num_threads = num_threads()
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        self._name = self._session.get_inputs()[0].name

    def __call__(self, images):
        return self._session.run(None, {self._name: images})[0]


class OpenVino:
    """OpenVINO; the path is an ONNX file."""

    def __init__(self, path):
        import openvino

        options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        options["INFERENCE_NUM_THREADS"] = num_threads()
        self._model = openvino.Core().compile_model(str(path), "CPU", options)

    def __call__(self, images):
        return self._model(images)[0]


class LockedBackend:
    """A thread-safe backend: calls from several threads run one at a time."""

    def __init__(self, backend):
        self._backend, self._lock = backend, threading.Lock()

    def __call__(self, images):
        """A copy of the graph's output.

        Raises:
            InputError: The graph does not support images of this size.
        """
        try:
            with self._lock:
                output = np.array(self._backend(images))
            if output.size == 0:  # OpenVINO on one thread returns this; other backends raise
                raise ValueError("empty output")
            return output
        except Exception as error:  # each backend has its own exception types
            size, reason = "{3}x{2}".format(*images.shape), one_line(error)[:200]
            raise InputError(f"The graph does not support images of {size} ({reason}).") from error


ONNX_BACKENDS = {"openvino": OpenVino, "onnxruntime": OnnxRuntime}
BACKENDS = {"paddle": PaddleInference, **ONNX_BACKENDS}
"""Backends by name; of those for ONNX files, the fastest first."""


def open_backend(path, name=None):
    """Open an exported graph as a ``LockedBackend``.

    Args:
        path: A folder with Paddle Inference's two files, or an ONNX file.
        name: Key of ``BACKENDS``; None means the fastest that is installed.

    Raises:
        InputError: The file cannot be read, or no backend for it is installed.
    """
    backends = {"paddle": PaddleInference} if Path(path).is_dir() else ONNX_BACKENDS
    names = " or ".join(backends)
    if name is not None:
        if name not in backends:
            raise InputError(f"--backend {name}: does not read {path}; use {names}.")
        backends, names = {name: backends[name]}, name
    for backend in backends.values():
        try:
            return LockedBackend(backend(path))
        except ImportError:
            continue
        except InputError:
            raise
        except Exception as error:  # each backend has its own exception types
            raise InputError(f"{path}: cannot be opened ({one_line(error)}).") from error
    raise InputError(f"{path}: needs {names}; pip install 'paddleseg-segformer[onnx]'.")


def make_segmenter(backend, source, transforms, test_config):
    """A segmenter that runs an exported graph, with the interface of ``Segmenter``.

    Args:
        backend: Result of ``open_backend``.
        source: ``ModelSource`` of the graph.
        transforms, test_config: As of ``Segmenter``.

    Raises:
        InputError: The test configuration needs logits, which the graph does not return.
    """
    size = None if -1 in source.input_shape[2:] else tuple(source.input_shape[2:])
    if source.output_op == "none":
        return Segmenter(GraphLogitsModel(backend, size), transforms, test_config)
    if test_config != TestConfig():
        problem = "supports no test-time augmentation and no sliding windows"
        hint = "export it with --output_op none"
        raise InputError(f"A graph whose output is {source.output_op} {problem}; {hint}.")
    return GraphSegmenter(backend, size, transforms)


class GraphLogitsModel:
    """An exported graph that returns logits, with the interface of a PaddleSeg model.

    ``size`` is the graph's fixed input size ``(H, W)``, to which images are resized, or None.
    """

    def __init__(self, backend, size):
        self._backend, self.size = backend, size

    def __call__(self, images):
        if self.size is not None and tuple(images.shape[2:]) != self.size:
            images = F.interpolate(images, self.size, mode="bilinear")
        return [paddle.to_tensor(self._backend(images.numpy()))]


class GraphSegmenter:
    """An exported graph that returns label maps or probabilities, with its preprocessing.

    Outputs are resized to the original image size: probabilities bilinearly, label maps to the
    nearest pixel.
    """

    max_images = MAX_PARALLEL_INPUTS

    def __init__(self, backend, size, transforms):
        self._backend, self._size, self._transforms = backend, size, Compose(transforms)

    def augmented_inputs(self, image):
        """The transformed sample of an image as of ``read_image``; the only input."""
        return [self._transforms({"img": image})]

    def __call__(self, images):
        """Label maps, integer arrays ``[H, W]``, from the ``augmented_inputs`` of each image."""
        return [self._segment(sample["img"], sample["trans_info"]) for (sample,) in images]

    def _segment(self, image, trans_info):
        if self._size is not None and image.shape[1:] != self._size:
            trans_info = [*trans_info, ("resize", image.shape[1:])]
            image = np.atleast_3d(cv2.resize(image.transpose(1, 2, 0), self._size[::-1]))
            image = image.transpose(2, 0, 1)
        output = self._backend(np.ascontiguousarray(image[None], dtype="float32"))[0]
        is_label_map = output.ndim == 2
        if not is_label_map:
            output = np.ascontiguousarray(output.transpose(1, 2, 0))
        for kind, (height, width) in reversed(trans_info):
            if kind == "resize":
                interpolation = cv2.INTER_NEAREST if is_label_map else cv2.INTER_LINEAR
                output = cv2.resize(output, (int(width), int(height)), interpolation=interpolation)
            else:  # padding at the right and the bottom
                output = output[:height, :width]
        return output if is_label_map else output.argmax(axis=2)

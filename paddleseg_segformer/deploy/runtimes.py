"""Running an exported graph: by Paddle Inference, ONNX Runtime or OpenVINO, all on the CPU.

Each class takes a path, and is called with a float32 array ``[N, 3, H, W]``.
"""

import threading
from pathlib import Path

import numpy as np
import paddle

from ..errors import InputError, one_line
from ..runtime import parallelism


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
        options.set_cpu_math_library_num_threads(parallelism())
        self._predictor = inference.create_predictor(options)
        (name,) = self._predictor.get_input_names()
        self._input = self._predictor.get_input_handle(name)
        (name,) = self._predictor.get_output_names()
        self._output = self._predictor.get_output_handle(name)

    def __call__(self, images):
        self._input.reshape(images.shape)
        self._input.copy_from_cpu(images)
        self._predictor.run()
        paddle.base.core.set_num_threads(parallelism())  # of which a run leaves Paddle one
        return self._output.copy_to_cpu()


class OnnxRuntime:
    """An ONNX file."""

    def __init__(self, path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # it warns of constants that nothing uses
        options.intra_op_num_threads = parallelism()
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
            "INFERENCE_NUM_THREADS": parallelism(),
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._model = openvino.Core().compile_model(str(path), "CPU", options)

    def __call__(self, images):
        return self._model(images)[0]


class OneAtATime:
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


OF_ONNX = {"openvino": OpenVino, "onnxruntime": OnnxRuntime}
RUNTIMES = {"paddle": PaddleInference, **OF_ONNX}
"""What runs an exported graph, by name: Paddle's own, or of an ONNX file the fastest first."""


def open_runtime(path, name=None):
    """Open an exported graph.

    Args:
        path: A folder with Paddle Inference's two files, or an ONNX file.
        name: Of ``RUNTIMES``; None takes the fastest of those that are installed.

    Raises:
        InputError: The file cannot be read, or no runtime for it is installed.
    """
    wanted = {"paddle": PaddleInference} if Path(path).is_dir() else OF_ONNX
    if name is not None:
        if name not in wanted:
            raise InputError(f"--runtime {name}: does not read {path}; use {' or '.join(wanted)}.")
        wanted = {name: wanted[name]}
    for runtime in wanted.values():
        try:
            return OneAtATime(runtime(path))
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

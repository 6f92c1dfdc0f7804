"""Implementations of benchmark.py that run as exported graphs, or compiled."""

import tempfile
from pathlib import Path

from implementations import HuggingFace, Ours, PaddleSeg


class Exported:
    """What makes a model's implementation run as a graph, its size fixed, that gives label maps."""

    runtime = "onnxruntime"

    def held_memory(self):
        return None  # graphs run on the CPU

    def infer(self):
        from paddleseg_segformer.deploy.export import convert_to_onnx, write_paddle
        from paddleseg_segformer.deploy.export_model import ExportModel
        from paddleseg_segformer.inference import BACKENDS

        self.model.eval()
        with tempfile.TemporaryDirectory() as folder:
            write_paddle(ExportModel(self.model, "argmax"), self.spec.images.shape, Path(folder))
            if self.runtime == "paddle":
                graph = BACKENDS[self.runtime](folder)
            else:
                convert_to_onnx(Path(folder))
                graph = BACKENDS[self.runtime](Path(folder) / "model.onnx")
        return lambda: graph(self.spec.images)


class OursPaddleInference(Exported, Ours):
    runtime = "paddle"


class OursOnnxRuntime(Exported, Ours):
    pass


class OursOpenVino(Exported, Ours):
    runtime = "openvino"


class PaddleSegOnnxRuntime(Exported, PaddleSeg):
    pass


class PaddleSegOpenVino(Exported, PaddleSeg):
    runtime = "openvino"


class HuggingFaceCompiled(HuggingFace):
    """The same under torch.compile, the resize and the choice of classes with it."""

    def infer(self):
        self.model.eval()
        interpolate = self.torch.nn.functional.interpolate

        @self.torch.compile
        def label(images):
            logits = self.model(images).logits
            full = interpolate(logits, self.spec.size, mode="bilinear", align_corners=False)
            return full.argmax(dim=1)

        def step():
            with self.torch.no_grad(), self.torch.autocast(**self.amp):
                return label(self.images).cpu().numpy()

        return step


EXPORTED = {
    "ours-paddle-inference": OursPaddleInference,
    "ours-onnxruntime": OursOnnxRuntime,
    "ours-openvino": OursOpenVino,
    "paddleseg-onnxruntime": PaddleSegOnnxRuntime,
    "paddleseg-openvino": PaddleSegOpenVino,
    "huggingface-compiled": HuggingFaceCompiled,
}

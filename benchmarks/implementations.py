"""The implementations that benchmark.py compares, each run by worker.py in its own process.

Their methods ``train``, ``infer``, ``eval`` and ``data`` prepare the job of that name, and return a
function that runs it once.
"""

import importlib
import tempfile
from pathlib import Path

import numpy as np

IGNORE_INDEX = 255
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Ours:
    """This project, called as its tools call it."""

    tunes_cpu = True

    def __init__(self, spec):
        from paddleseg_segformer import device

        if self.tunes_cpu:
            device.tune_cpu()
        import paddle

        from paddleseg_segformer.config import build, load_config

        device.set_device(spec.device)
        self.paddle, self.spec, self.build = paddle, spec, build
        random_init = ["model.pretrained=null", "model.backbone.pretrained=null"]
        self.config = load_config(spec.config, [*random_init, *spec.opts], iters=160000)
        if spec.job == "data":
            return
        paddle.seed(0)
        self.model = self.make_model()
        if Path(spec.weights).exists():
            self.load(spec.weights)
        else:
            paddle.save(self.model.state_dict(), spec.weights)
        half = spec.precision != "fp32"
        self.amp = {"enable": half, "dtype": {"fp16": "float16"}.get(spec.precision, "bfloat16")}
        self.images, self.labels = paddle.to_tensor(spec.images), paddle.to_tensor(spec.labels)

    def make_model(self):
        return self.build(self.config, "model")[0]

    def load(self, path):
        from paddleseg_segformer import load_weights

        load_weights(self.model, path)

    def synchronize(self):
        if self.paddle.get_device() != "cpu":
            self.paddle.device.synchronize()

    def baseline_memory(self):
        """Reset the GPU's peak memory, and return the allocated bytes; None on a CPU."""
        if self.paddle.get_device() == "cpu":
            return None
        self.paddle.device.cuda.reset_max_memory_allocated()
        return self.paddle.device.cuda.memory_allocated()

    def peak_memory(self):
        return self.paddle.device.cuda.max_memory_allocated()

    def macs(self):
        """Multiply-accumulates of the model per image, counted while its operators run."""
        operators, tensor, counts = self.paddle._C_ops, self.paddle.Tensor, []

        def counted(name, operator):
            def run(x, weight, *args, **options):
                result = operator(x, weight, *args, **options)
                transposed = options.get("transpose_x", args[0] if args else False)
                inner = x.shape[-2 if transposed is True else -1]
                if "conv" in name:
                    inner = np.prod(weight.shape[1:])
                counts.append(int(np.prod(result.shape)) * int(inner))
                return result

            return run

        names = ("matmul", "mv", "linear", "conv2d", "depthwise_conv2d")
        originals = {name: getattr(operators, name) for name in names if hasattr(operators, name)}
        tensor_matmul = tensor.__matmul__  # does not call _C_ops
        try:
            tensor.__matmul__ = counted("matmul", tensor_matmul)
            for name, operator in originals.items():
                setattr(operators, name, counted(name, operator))
            self.forward_without_resize()
        finally:
            tensor.__matmul__ = tensor_matmul
            for name, operator in originals.items():
                setattr(operators, name, operator)
        return sum(counts) // len(self.spec.images)

    def square_matmul(self, n):
        """A function that multiplies two ``n`` by ``n`` matrices."""
        x = self.paddle.randn([n, n])
        x = x.astype(self.amp["dtype"]) if self.amp["enable"] else x
        return lambda: self.paddle.matmul(x, x)

    def forward_without_resize(self):
        self.model.eval()
        with self.paddle.no_grad():
            self.model.decode(self.model.backbone(self.images))

    def train(self):
        loss_function = self.build(self.config, "loss")[0]["types"][0]
        optimizer = self.paddle.optimizer.AdamW(6e-5, parameters=self.model.parameters())
        self.model.train()

        def step():
            with self.paddle.amp.auto_cast(**self.amp):
                loss = self.loss(loss_function)
            loss.backward()
            optimizer.step()
            optimizer.clear_grad(set_to_zero=False)

        return step

    def loss(self, function):
        from paddleseg_segformer import CrossEntropyLoss, SegFormer

        options = {}
        if isinstance(self.model, SegFormer) and isinstance(function, CrossEntropyLoss):
            options["resize_logits"] = self.model.align_corners  # else the loss resizes them
        return function(self.model(self.images, **options)[0], self.labels)

    def infer(self):
        from paddleseg_segformer.inference import Segmenter, TestConfig
        from paddleseg_segformer.inference.tta import AugmentedInput

        segmenter = Segmenter(self.model, [], TestConfig())
        self.model.eval()

        def step():
            with self.paddle.amp.auto_cast(**self.amp):
                images = [[AugmentedInput(image, (), [])] for image in self.spec.images]
                return np.stack([labels.numpy() for labels in segmenter(images)])

        return step

    def eval(self):
        from paddleseg_segformer.engine import evaluate
        from paddleseg_segformer.inference import TestConfig
        from paddleseg_segformer.inference.test_config import PAPER_SCALES

        (dataset,) = self.build(self.config, "val_dataset")
        test_config = TestConfig(scales=PAPER_SCALES, flip_horizontal=True)
        return lambda: evaluate(self.model, dataset, test_config)

    def data(self):
        """Read and transform ``samples`` training images on one thread."""
        import cv2

        cv2.setNumThreads(0)
        (dataset,) = self.build(self.config, "train_dataset")

        def step():
            np.random.seed(0)
            for i in range(self.spec.samples):
                dataset[i % len(dataset)]

        return step


class PaddleSeg(Ours):
    """PaddleSeg's model, loss, evaluation and transforms, with our CPU tuning."""

    def make_model(self):
        model = self.config.dic["model"]
        backbone = importlib.import_module("paddleseg.models.backbones.mix_transformer")
        segformer = importlib.import_module("paddleseg.models.segformer")
        backbone = getattr(backbone, model["backbone"]["type"])()
        return segformer.SegFormer(model["num_classes"], backbone, model["embedding_dim"])

    def load(self, path):
        from paddleseg_segformer import load_weights

        ours = self.build(self.config, "model")[0]
        load_weights(ours, path)
        self.model.set_state_dict(ours.state_dict())

    def forward_without_resize(self):
        self.model.eval()
        with self.paddle.no_grad():
            self.model(self.images)  # resizes, which is not counted as multiply-accumulates

    def loss(self, function):
        """PaddleSeg's cross-entropy without its last line, which crashes on Paddle 3."""
        logits = self.model(self.images)[0].transpose([0, 2, 3, 1])
        losses = self.paddle.nn.functional.cross_entropy(
            logits, self.labels, ignore_index=IGNORE_INDEX, reduction="none"
        )
        return losses.mean()

    def infer(self):
        from paddleseg.core.infer import inference

        self.model.eval()

        def step():
            with self.paddle.no_grad(), self.paddle.amp.auto_cast(**self.amp):
                return inference(self.model, self.images, [])[0].numpy()[:, 0]

        return step

    def eval(self):
        from paddleseg.core.infer import aug_inference

        from paddleseg_segformer.engine.metrics import confusion_matrix
        from paddleseg_segformer.inference.test_config import PAPER_SCALES

        (dataset,) = self.build(self.config, "val_dataset")
        self.model.eval()

        def step():
            for i in range(len(dataset)):
                sample = dataset[i]
                image, info = self.paddle.to_tensor(sample["img"]), sample["trans_info"]
                with self.paddle.no_grad():
                    predicted = aug_inference(self.model, image[None], info, PAPER_SCALES, True)[0]
                predicted = predicted.numpy()[0, 0]
                # Ours, because PaddleSeg's crashes on Paddle 3.
                confusion_matrix(sample["label"][0], predicted, dataset.num_classes, IGNORE_INDEX)

        return step

    def data(self):
        import cv2
        import paddleseg.transforms as T
        from PIL import Image

        cv2.setNumThreads(0)
        (dataset,) = self.build(self.config, "train_dataset")
        transforms = T.Compose(
            [
                T.ResizeStepScaling(0.5, 2.0, 0.25),
                T.RandomPaddingCrop([512, 512]),
                T.RandomHorizontalFlip(),
                T.RandomDistort(0.4, 1, 0.4, 1, 0.4),
                T.Normalize(MEAN, STD),
            ]
        )

        def step():
            for i in range(self.spec.samples):
                image, label = dataset.file_list[i % len(dataset)]
                label = np.asarray(Image.open(label)) - np.uint8(1)
                transforms({"img": image, "label": label, "gt_fields": ["label"]})

        return step


class PaddleSegAsInstalled(PaddleSeg):
    """PaddleSeg with Paddle's defaults: one thread, freed memory returned, slow kernels on AMD."""

    tunes_cpu = False


class HuggingFace:
    """SegFormer of Hugging Face transformers, on PyTorch."""

    compiled = False
    half = False  # bfloat16 by autocast, whatever the spec

    def __init__(self, spec):
        import torch
        from transformers import SegformerConfig, SegformerForSemanticSegmentation

        from paddleseg_segformer.models import VARIANTS

        self.torch, self.spec = torch, spec
        self.device = spec.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.device = self.device.replace("gpu", "cuda")
        variant = VARIANTS[spec.backbone]
        torch.manual_seed(0)
        config = SegformerConfig(
            hidden_sizes=variant.embed_dims,
            depths=variant.depths,
            num_attention_heads=variant.num_heads,
            sr_ratios=variant.sr_ratios,
            decoder_hidden_size=spec.width,
            num_labels=spec.classes,
        )
        self.model = SegformerForSemanticSegmentation(config).to(self.device)
        self.model.save_pretrained(spec.weights)
        dtype = torch.float16 if spec.precision == "fp16" else torch.bfloat16
        half = self.half or spec.precision != "fp32"
        self.amp = {"device_type": self.device.split(":")[0], "dtype": dtype, "enabled": half}
        self.images = torch.from_numpy(spec.images).to(self.device)
        self.labels = torch.from_numpy(spec.labels).to(self.device)

    def synchronize(self):
        if self.device != "cpu":
            self.torch.cuda.synchronize()

    def baseline_memory(self):
        if self.device == "cpu":
            return None
        self.torch.cuda.reset_peak_memory_stats()
        return self.torch.cuda.memory_allocated()

    def peak_memory(self):
        return self.torch.cuda.max_memory_allocated()

    def macs(self):
        from torch.utils.flop_counter import FlopCounterMode

        self.model.set_attn_implementation("eager")  # fused attention is not counted
        with FlopCounterMode(display=False) as counter, self.torch.no_grad():
            self.model(self.images[:1])
        return counter.get_total_flops() // 2

    def square_matmul(self, n):
        dtype = self.amp["dtype"] if self.amp["enabled"] else self.torch.float32
        x = self.torch.randn([n, n], device=self.device).to(dtype)
        return lambda: self.torch.matmul(x, x)

    def train(self):
        optimizer = self.torch.optim.AdamW(self.model.parameters(), 6e-5)
        self.model.train()
        model = self.torch.compile(self.model) if self.compiled else self.model
        functional, size = self.torch.nn.functional, self.labels.shape[1:]

        def step():
            with self.torch.autocast(**self.amp):
                # The model's own loss; torch.compile makes the gradient of its resize slower.
                logits = functional.interpolate(model(self.images).logits, size, mode="bilinear")
                loss = functional.cross_entropy(logits, self.labels, ignore_index=IGNORE_INDEX)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def infer(self):
        """The model, resize and argmax, as in its ``post_process_semantic_segmentation``."""
        self.model.eval()
        interpolate = self.torch.nn.functional.interpolate

        def predict(images):
            logits = self.model(images).logits
            resized = interpolate(logits, self.spec.size, mode="bilinear", align_corners=False)
            return resized.argmax(dim=1)

        predict = self.torch.compile(predict) if self.compiled else predict

        def step():
            with self.torch.inference_mode(), self.torch.autocast(**self.amp):
                return predict(self.images).cpu().numpy()

        return step


class HuggingFaceCompiled(HuggingFace):
    """The same under ``torch.compile``, for label maps with resize and argmax."""

    compiled = True


class HuggingFaceBFloat16(HuggingFace):
    """The same in bfloat16 by autocast, which is faster on processors with AMX or AVX512-BF16."""

    half = True


class HuggingFaceCompiledBFloat16(HuggingFaceCompiled, HuggingFaceBFloat16):
    """Both."""


def exported(base, backend_name):
    """``base`` with its model exported as a graph of fixed input size."""

    class Exported(base):
        def baseline_memory(self):
            return None  # graphs run on the CPU

        def infer(self):
            from paddleseg_segformer.deploy.export import convert_to_onnx, write_paddle
            from paddleseg_segformer.deploy.export_model import ExportModel
            from paddleseg_segformer.inference import BACKENDS

            self.model.eval()
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder)
                write_paddle(ExportModel(self.model, "argmax"), self.spec.images.shape, path)
                if backend_name != "paddle":
                    convert_to_onnx(path)
                    path = path / "model.onnx"
                backend = BACKENDS[backend_name](path)
            return lambda: backend(self.spec.images)

    return Exported


IMPLEMENTATIONS = {
    "ours": Ours,
    "paddleseg": PaddleSeg,
    "paddleseg-as-installed": PaddleSegAsInstalled,
    "huggingface": HuggingFace,
    "huggingface-compiled": HuggingFaceCompiled,
    "huggingface-bf16": HuggingFaceBFloat16,
    "huggingface-compiled-bf16": HuggingFaceCompiledBFloat16,
}
# For the job infer only.
INFERENCE_ONLY = {
    "ours-paddle-inference": exported(Ours, "paddle"),
    "ours-onnxruntime": exported(Ours, "onnxruntime"),
    "ours-openvino": exported(Ours, "openvino"),
    "paddleseg-onnxruntime": exported(PaddleSeg, "onnxruntime"),
    "paddleseg-openvino": exported(PaddleSeg, "openvino"),
}

"""Distillation: a small model also learns the logits of a larger one, its teacher.

Hinton et al., "Distilling the Knowledge in a Neural Network", 2015: the loss is T^2 times the
Kullback-Leibler divergence of the student's softmax from the teacher's, of logits divided by the
temperature T; here its mean over the valid pixels.
"""

import numpy as np
import paddle
import paddle.nn.functional as F
from paddleseg.utils import utils

from ..config import build
from ..data import class_names
from ..data.transforms import normalization
from ..errors import InputError
from ..inference import load_model
from ..inference.model_source import resolve_model
from ..log import logger
from ..models import SegFormer
from ..ops import resize_bilinear

TEMPERATURE = 2.0  # better than 1 in all three runs of docs/training.md


class Distillation:
    """The loss of a student's logits against a teacher's.

    The teacher is in evaluation mode, gets no gradient and belongs to no checkpoint.

    Args:
        teacher: A model whose first output is the logits, for the same images and classes.
        ignore_index: Label of the pixels that do not count.
        weight: Factor of the loss, at least 0.
        temperature: T, above 0.
    """

    def __init__(self, teacher, ignore_index=255, weight=1.0, temperature=TEMPERATURE):
        self.teacher, self.ignore_index = teacher, ignore_index
        self.weight, self.temperature = weight, temperature
        # The logits of both are compared at stride 4, before SegFormer enlarges them.
        self.forward_options = {"resize_logits": False} if isinstance(teacher, SegFormer) else {}
        teacher.eval()

    def normalizer(self, label):
        """The number of valid pixels, by which the summed loss is divided, a scalar tensor."""
        return (label != self.ignore_index).astype("float32").sum()

    def __call__(self, logits, images, label, scale=1.0):
        """The mean loss of a batch over its valid pixels.

        At a smaller size than the label's, a pixel of the logits counts by the share of valid
        pixels among those it stands for.

        Args:
            logits: The student's, float tensor ``[N, C, h, w]``.
            images: Float tensor ``[N, bands, H, W]``, normalized.
            label: Integer tensor ``[N, H, W]`` of class indices or ``ignore_index``.
            scale: Factor of the loss.

        Returns:
            Scalar tensor, float64 for float64 logits, else float32.
        """
        with paddle.no_grad():
            target = self.teacher(images, **self.forward_options)[0]
        with paddle.amp.auto_cast(enable=False):
            dtype = "float64" if logits.dtype == paddle.float64 else "float32"
            size = logits.shape[2:]
            target = resize_bilinear(target.astype(dtype), size)
            valid = (label != self.ignore_index).astype(dtype).unsqueeze(1)
            shares = F.adaptive_avg_pool2d(valid, size).squeeze(1)
            total = (self._divergence(logits.astype(dtype), target) * shares).sum()
            pixels = valid.size / shares.size  # for which one of the logits stands
            factor = self.weight * self.temperature**2 * scale
            return total * pixels * factor / (valid.sum() + 1e-8)

    def _divergence(self, student, teacher):
        """``KL(softmax(teacher / T) || softmax(student / T))`` of each pixel, ``[N, h, w]``."""
        # Softmax on a CPU is several times faster channels last.
        student, teacher = (
            x.transpose([0, 2, 3, 1]) / self.temperature for x in (student, teacher)
        )
        with paddle.no_grad():
            target = F.softmax(teacher)
            entropy = F.cross_entropy(teacher, target, soft_label=True, reduction="none")
        # One operator for softmax, logarithm and their gradient.
        loss = F.cross_entropy(student, target, soft_label=True, reduction="none")
        return (loss - entropy).squeeze(-1)


def build_distillation(config, dataset, model):
    """``Distillation`` of a config's section, or None if it has none.

    Args:
        config: PaddleSeg's ``Config``.
        dataset: The training set.
        model: The student.

    Raises:
        InputError: The teacher cannot be loaded, or has other classes, bands or normalization than
            the training set; or the student has no logits.
    """
    options = dict(config.dic.get("distillation") or {})
    if not options:
        return None
    if hasattr(model, "loss_computation"):
        raise InputError(
            f"distillation: {type(model).__name__} computes its losses itself, without logits of "
            "classes that a teacher's could be compared with; remove the section."
        )
    teacher, teacher_config = options.pop("teacher"), options.pop("config", None)
    source = resolve_model(teacher, teacher_config)
    at = f"distillation.teacher: {teacher}"
    if source.output_op is not None:
        raise InputError(f"{at} is an exported graph; give the checkpoint that it was made from.")
    names, expected = source.classes, class_names(dataset)
    if len(names) != len(expected):
        raise InputError(
            f"{at} has {len(names)} classes and train_dataset {len(expected)}; they must be the "
            "same."
        )
    bands = [utils.get_in_channels(cfg) or 3 for cfg in (source.config.model_cfg, config.model_cfg)]
    if bands[0] != bands[1]:
        raise InputError(
            f"{at} is for {bands[0]}-band images, and train_dataset has {bands[1]}-band ones; use "
            "a teacher for the same images."
        )
    (transforms,) = build(source.config, "val_transforms")
    normalizations = [normalization(x, bands[0]) for x in (transforms, dataset.transforms)]
    if not np.allclose(*normalizations, rtol=0, atol=1e-6):
        texts = ["mean {}, std {}".format(*np.round(x, 4).tolist()) for x in normalizations]
        takes, hint = "takes", "make its Normalize that of the teacher"
        if source.assumes_normalize:
            takes = "is weights without a config, and is assumed to take"
            hint += ", or name the teacher's config as distillation.config"
        raise InputError(
            f"{at} {takes} images normalized with {texts[0]}, and train_dataset's have {texts[1]}; "
            f"{hint}."
        )
    numbers = [str(index) for index in range(len(names))]
    if names != expected and numbers not in (names, expected):
        index = next(i for i, pair in enumerate(zip(names, expected)) if len({*pair}) > 1)
        logger.warning(
            f"{at} calls class {index} {names[index]}, and train_dataset {expected[index]}: check "
            "that the classes are the same"
        )
    loaded = load_model(source.config, source.weights)
    distillation = Distillation(loaded, dataset.ignore_index, **options)
    logger.info(
        f"Distillation from {teacher}, {type(loaded).__name__}: weight {distillation.weight:g}, "
        f"temperature {distillation.temperature:g}"
    )
    return distillation

"""The Python API for prediction: a trained model and an image to a segmentation map."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Union

import numpy as np
from paddleseg.cvlibs import Config
from PIL import Image

from ..config import build
from ..data.image_io import ANY_TYPE, TypeCheck, fit_channels, read_image, to_8bit_scale, type_name
from ..data.raster_io import from_pillow
from ..device import set_device, tune_cpu
from ..errors import InputError
from ..fs import StrPath
from .backends import make_segmenter, open_backend
from .model_source import resolve_model
from .segmenter import Segmenter, load_model
from .test_config import TestConfig
from .visualize import color_map, overlay, to_picture

logger = logging.getLogger(__name__)

ImageLike = Union[StrPath, Image.Image, np.ndarray]
MAX_CLASSES = 255  # of an 8-bit label map, where 255 means unlabeled


@dataclass(frozen=True)
class Prediction:
    """The segmentation map (label map) of an image.

    Attributes:
        label_map: uint8 array ``[H, W]`` of class indices.
        image: uint8 array ``[H, W, 3]``, RGB: the image, or ``to_picture`` of other images.
        classes: Class names.
        palette: uint8 array ``[classes, 3]``, RGB, or longer.
        probabilities: Softmax probabilities, float16 array ``[classes, H, W]``, if requested.
    """

    label_map: np.ndarray
    image: np.ndarray
    classes: list[str]
    palette: np.ndarray
    probabilities: np.ndarray | None = None

    def overlay(self, opacity: float = 0.5) -> Image.Image:
        """The image blended with the colored label map, at an opacity from 0 to 1."""
        return Image.fromarray(overlay(self.image, self.label_map, self._colors(), opacity))

    def color_map(self) -> Image.Image:
        """The label map in the classes' colors, an RGB image."""
        return Image.fromarray(color_map(self.label_map, self._colors()))

    def _colors(self):
        """The classes' colors: a palette of 256 would color pixels without data, which are 255."""
        return self.palette[: len(self.classes)]

    def label_image(self) -> Image.Image:
        """The label map as a palette image (mode P): class indices that viewers show in color."""
        image = Image.fromarray(self.label_map)
        image.putpalette(self.palette.tobytes())
        return image

    def shares(self) -> dict[str, float]:
        """The share of the pixels of each class that occurs, by name, in descending order."""
        counts = np.bincount(self.label_map.ravel(), minlength=len(self.classes))
        order = np.argsort(-counts, kind="stable")
        shares: dict[str, float] = {}
        for i in order[counts[order] > 0]:  # class names may repeat, as "screen" in ADE20K
            name = self.classes[i]
            shares[name] = shares.get(name, 0.0) + counts[i] / counts.sum()
        return shares


class Predictor:
    """A trained model for prediction.

    Args:
        source: A checkpoint's file or folder, its URL or the name of a Hugging Face repository, or
            a folder or ONNX file written by ``tools/export.py``; see ``resolve_model``.
        config: PaddleSeg's ``Config`` or its path, for a checkpoint without one.
        device: ``"gpu"``, ``"gpu:1"``, ``"cpu"``; None means the GPU if there is one. Exported
            graphs run on the CPU.
        backend: Key of ``BACKENDS``, for an exported graph; None means the fastest.
        options: Override keys of the config's ``test_config``; see ``TestConfig``.

    Attributes:
        classes: Class names.
        palette: uint8 array ``[classes, 3]``, RGB.
        channels: Number of bands of the images.
        check_type: ``TypeCheck`` with the types of the training images.
        segmenter: ``Segmenter``, or ``GraphSegmenter`` of graphs without logits.

    Raises:
        InputError: The model or device does not exist, or does not support the options.
    """

    def __init__(
        self,
        source: StrPath,
        config: Config | StrPath | None = None,
        device: str | None = None,
        backend: str | None = None,
        **options: Any,
    ) -> None:
        model_source = resolve_model(source, config)
        self.classes, self.palette = model_source.classes, model_source.palette
        self.channels = model_source.channels
        self.check_type = TypeCheck(model_source.image_types)
        (transforms,) = build(model_source.config, "val_transforms")
        test_config = TestConfig.from_config(model_source.config, **options)
        tune_cpu()
        if (count := len(self.classes)) > MAX_CLASSES:
            raise InputError(f"{source}: has {count} classes; label maps hold {MAX_CLASSES}.")
        if model_source.output_op is None:
            if backend is not None:
                raise InputError(f"--backend {backend}: {source} is not an exported graph.")
            try:
                set_device(device)
            except ValueError as error:
                raise InputError(str(error)) from error
            model = load_model(model_source.config, model_source.weights)
            self.segmenter = Segmenter(model, transforms, test_config)
        else:
            if device not in (None, "cpu"):
                raise InputError(f"--device {device}: an exported graph runs on the CPU.")
            set_device("cpu")
            graph = open_backend(model_source.weights, backend)
            self.segmenter = make_segmenter(graph, model_source, transforms, test_config)

    def __call__(self, image: ImageLike, probabilities: bool = False) -> Prediction:
        """Segment an image.

        Args:
            image: A path, a Pillow image, or an array ``[H, W]`` or ``[H, W, N]``: uint8, or other
                numbers as a file stores them, such as uint16. Three bands are RGB.
            probabilities: Whether to return the softmax probabilities, too.

        Raises:
            InputError: The image cannot be read or transformed, or an exported graph does not
                return the logits that probabilities are computed from.
        """
        return self.batch([image], probabilities)[0]

    def batch(self, images: Iterable[ImageLike], probabilities: bool = False) -> list[Prediction]:
        """Segment several images in parallel, one per CPU thread at a time."""
        images = [as_array(image, self.channels, self.check_type) for image in images]
        return self.segment_decoded(images, probabilities)

    def segment_decoded(
        self, images: list[np.ndarray], probabilities: bool = False
    ) -> list[Prediction]:
        """``batch`` of arrays that ``read_image`` or ``decode_image`` returned."""
        if probabilities:
            self.check_probabilities()
        inputs = [self._augmented_inputs(image) for image in images]
        if probabilities:
            results = self.segmenter.with_probabilities(inputs)
        else:
            results = [[labels] for labels in self.segmenter(inputs)]
        predictions = []
        for image, (labels, *scores) in zip(images, results):
            labels = np.asarray(labels).astype("uint8")
            scores = [x.numpy().transpose(2, 0, 1).astype("float16") for x in scores]
            picture = to_picture(image)
            predictions.append(Prediction(labels, picture, self.classes, self.palette, *scores))
        return predictions

    def _augmented_inputs(self, image):
        try:
            return self.segmenter.augmented_inputs(image)
        except ValueError as error:  # of PaddleSeg's Padding for an image larger than its target
            size = f"{image.shape[1]}x{image.shape[0]}"
            raise InputError(f"The image of {size} cannot be transformed ({error}).") from error

    def check_probabilities(self) -> None:
        """Raise ``InputError`` if the model is a graph that does not return logits."""
        if not isinstance(self.segmenter, Segmenter):
            raise InputError("--probabilities: needs a graph exported with --output_op none.")


def as_array(
    image: ImageLike, channels: int = 3, check_type: Callable[[str, str], None] = ANY_TYPE
) -> np.ndarray:
    """Convert any image that ``Predictor`` accepts to an array as ``read_image`` returns it."""
    name, has_alpha = "The image", False
    if isinstance(image, Image.Image):
        try:
            image, has_alpha, _ = from_pillow(image)
        except ValueError as error:
            raise InputError(f"The image cannot be segmented: {error}.") from error
    elif not isinstance(image, np.ndarray):
        return read_image(image, channels, check_type)
    elif image.ndim not in (2, 3) or image.size == 0 or image.dtype.kind not in "buif":
        array = f"an array of shape {image.shape}, {image.dtype}"
        raise InputError(f"{array}: is not an image; pass [H, W] or [H, W, N] of numbers.")
    else:
        has_whole_values = 1 < image.max() <= 255 and not (image % 1).any()
        if image.dtype not in (np.uint8, bool) and has_whole_values:
            logger.warning(
                f"The values of a {image.dtype} array, 0 to 255, are not taken for 8-bit values: "
                "pass uint8 for them"
            )
        # A copy: a ``Prediction`` keeps it, and callers may reuse the buffer.
        image = image[:, :, 0].copy() if image.shape[2:] == (1,) else image.copy()
    check_type(name, type_name(image.dtype))
    return fit_channels(to_8bit_scale(image, name), channels, name, has_alpha)

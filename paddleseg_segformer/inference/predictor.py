"""Images to label maps, in Python."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Union

import numpy as np
from paddleseg.cvlibs import Config
from paddleseg.transforms import Compose
from PIL import Image

from ..config import build
from ..data.image_io import from_pillow, read_image
from ..device import set_device, tune_cpu
from ..errors import InputError
from ..fs import StrPath
from .backends import make_segmenter, open_backend
from .model_source import resolve_model
from .segmenter import Segmenter, load_model
from .test_config import TestConfig
from .visualize import color_map, overlay

# What ``Predictor`` segments.
Picture = Union[StrPath, Image.Image, np.ndarray]
MAX_CLASSES = 255  # in 8 bits, of which 255 stands for unlabeled


@dataclass(frozen=True)
class Prediction:
    """What a model sees in an image.

    Attributes:
        label_map: uint8 array ``[H, W]`` of class indices.
        image: uint8 array ``[H, W, 3]``, RGB.
        classes: The classes' names.
        palette: uint8 array ``[classes, 3]``, RGB.
        probabilities: Each class's, float16 array ``[classes, H, W]``, where they were asked for.
    """

    label_map: np.ndarray
    image: np.ndarray
    classes: list[str]
    palette: np.ndarray
    probabilities: np.ndarray | None = None

    def overlay(self, opacity: float = 0.5) -> Image.Image:
        """The image under the classes' colors: a Pillow image. ``opacity`` is from 0 to 1."""
        return Image.fromarray(overlay(self.image, self.label_map, self.palette, opacity))

    def color_map(self) -> Image.Image:
        """The classes' colors alone: a Pillow image."""
        return Image.fromarray(color_map(self.label_map, self.palette))

    def label_image(self) -> Image.Image:
        """The class indices as a Pillow image of mode P, which viewers show in colors."""
        picture = Image.fromarray(self.label_map)
        picture.putpalette(self.palette.tobytes())
        return picture

    def shares(self) -> dict[str, float]:
        """The share of the image of each class that occurs, by name, the largest first."""
        counts = np.bincount(self.label_map.ravel(), minlength=len(self.classes))
        order = np.argsort(-counts, kind="stable")
        shares: dict[str, float] = {}
        for i in order[counts[order] > 0]:  # two classes may share a name, as ADE20K's screens do
            name = self.classes[i]
            shares[name] = shares.get(name, 0.0) + counts[i] / counts.sum()
        return shares


class Predictor:
    """A trained model, ready for images.

    Args:
        source: A checkpoint's file or folder, a folder or ONNX file of ``tools/export.py``; see
            ``resolve_model``.
        config: The configuration, or its path, of a checkpoint that does not hold it.
        device: ``"gpu"``, ``"gpu:1"``, ``"cpu"``; None takes the GPU where there is one. An
            exported graph runs on the CPU.
        backend: Of ``BACKENDS``, for an exported graph; None takes the fastest.
        options: Override keys of the configuration's ``test_config``; see ``TestConfig``.

    Attributes:
        classes: The classes' names.
        palette: uint8 array ``[classes, 3]``, RGB.

    Raises:
        InputError: There is no such model or device, or it cannot do what the options ask for.
    """

    def __init__(
        self,
        source: StrPath,
        config: Config | StrPath | None = None,
        device: str | None = None,
        backend: str | None = None,
        **options: Any,
    ) -> None:
        product = resolve_model(source, config)
        self.classes, self.palette = product.classes, product.palette
        transforms = Compose(build(product.config, "val_transforms")[0])
        test_config = TestConfig.from_config(product.config, **options)
        tune_cpu()
        if len(self.classes) > MAX_CLASSES:
            raise InputError(
                f"{source}: has {len(self.classes)} classes; label maps hold {MAX_CLASSES}."
            )
        if product.output_op is None:
            if backend is not None:
                raise InputError(f"--backend {backend}: {source} is no exported graph.")
            try:
                set_device(device)
            except ValueError as error:
                raise InputError(str(error)) from error
            model = load_model(product.config, product.weights)
            self._segmenter = Segmenter(model, transforms, test_config)
        else:
            if device not in (None, "cpu"):
                raise InputError(f"--device {device}: an exported graph runs on the CPU.")
            set_device("cpu")
            graph = open_backend(product.weights, backend)
            self._segmenter = make_segmenter(graph, product, transforms, test_config)

    def __call__(self, image: Picture, probabilities: bool = False) -> Prediction:
        """Segment an image.

        Args:
            image: A path, a Pillow image, or a uint8 array ``[H, W]`` or ``[H, W, 3]``, RGB.
            probabilities: Whether the classes' are wanted, too.

        Returns:
            ``Prediction``.

        Raises:
            InputError: It cannot be read as an image, or a graph's output is not logits, from which
                probabilities could be had.
        """
        return self.batch([image], probabilities)[0]

    def batch(self, images: Iterable[Picture], probabilities: bool = False) -> list[Prediction]:
        """The ``Prediction``s of several images, as many at a time as there are threads."""
        if probabilities:
            self.check_probabilities()
        images = [as_bgr(image) for image in images]
        views = [self._segmenter.views(image) for image in images]
        if probabilities:
            found = self._segmenter.with_probabilities(views)
        else:
            found = [[labels] for labels in self._segmenter(views)]
        return [
            Prediction(
                np.asarray(labels).astype("uint8"),
                np.ascontiguousarray(image[:, :, ::-1]),
                self.classes,
                self.palette,
                *(scores.numpy().transpose(2, 0, 1).astype("float16") for scores in more),
            )
            for (labels, *more), image in zip(found, images)
        ]

    def check_probabilities(self) -> None:
        """Raise the ``InputError`` of a graph that cannot give any."""
        if not isinstance(self._segmenter, Segmenter):
            raise InputError("--probabilities: needs a graph exported with --output_op none.")


def as_bgr(image: Picture) -> np.ndarray:
    """An image of any kind that ``Predictor`` takes as a uint8 array ``[H, W, 3]``, BGR."""
    if isinstance(image, Image.Image):
        try:
            return from_pillow(image)
        except ValueError as error:
            raise InputError(f"The image cannot be segmented: {error}.") from error
    if not isinstance(image, np.ndarray):
        return read_image(image)
    of_pixels = image.dtype == np.uint8 and image.ndim in (2, 3) and image.size > 0
    if not of_pixels or image.shape[2:] not in ((), (3,)):
        raise InputError(
            f"an array of shape {image.shape}, {image.dtype}: is no image; "
            "give uint8 [H, W, 3], RGB."
        )
    image = np.repeat(image[:, :, None], 3, axis=2) if image.ndim == 2 else image
    return np.ascontiguousarray(image[:, :, ::-1])

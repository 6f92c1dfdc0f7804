"""Images to label maps."""

import copy
from typing import NamedTuple

import numpy as np
import paddle

from ..config import build
from ..data.transforms import at_scale
from ..errors import InputError
from ..models import SegFormer
from ..ops import Part, label_map, linear_weights, resize_rows
from ..runtime import parallel_map, parallelism
from ..weights import load_weights


def load_model(config, model_path):
    """Build a configuration's model in evaluation mode, with all its weights from a checkpoint.

    Raises:
        InputError: The checkpoint does not fit, or lacks a part of the model.
    """
    config = copy.deepcopy(config)
    for section in (config.dic["model"], config.dic["model"].get("backbone", {})):
        section.pop("pretrained", None)  # the checkpoint has it all: fetch nothing
    (model,) = build(config, "model")
    missing = load_weights(model, model_path).missing
    if missing:
        raise InputError(
            f"{model_path}: has no {missing[0]} of this model; it is a backbone's checkpoint, or "
            "was trained for another number of classes."
        )
    model.eval()
    return model


class View(NamedTuple):
    """One look at an image.

    Attributes:
        image: Float array ``[3, h, w]``.
        flip: Axes, of ``[N, C, H, W]``, that are mirrored before the model sees it.
        trans_info: What the transforms did to the image's size, as PaddleSeg notes it.
    """

    image: np.ndarray
    flip: list
    trans_info: list


class Segmenter:
    """A model, and how it looks at images.

    Args:
        model: A PaddleSeg model in evaluation mode.
        transforms: PaddleSeg's ``Compose`` of the validation transforms.
        protocol: ``Protocol``.
    """

    def __init__(self, model, transforms, protocol):
        self.model, self.protocol = model, protocol
        self.transforms = [at_scale(transforms, scale) for scale in protocol.scales]

    def views(self, image, transformed=None):
        """All looks at one image, every scale made from the original.

        Args:
            image: uint8 array ``[H, W, 3]``, BGR as OpenCV reads it.
            transformed: The transforms' result for it, where there is one already.
        """
        views = []
        for scale, transforms in zip(self.protocol.scales, self.transforms):
            if scale == 1 and transformed is not None:
                sample = transformed
            else:
                sample = transforms({"img": image.astype("float32"), "trans_info": []})
            views += [View(sample["img"], f, sample["trans_info"]) for f in self.protocol.flips]
        return views

    @paddle.no_grad()
    def __call__(self, images):
        """Label the pixels of images.

        Args:
            images: A list with the ``views`` of each; several are faster than one on a CPU.

        Returns:
            A list of int32 tensors ``[H, W]`` of class indices, at the images' original sizes. Of
            several views, the mean of their softmax decides; of windows, the mean of their logits.
        """
        views = [view for image in images for view in image]
        # A thread for each view, unless most would have none: then all work on one view.
        apply = parallel_map if 2 * len(views) > parallelism() else map
        parts = iter(apply(self._parts, views))
        return [label_map([next(parts) for _ in image]) for image in images]

    def _parts(self, view):
        """The parts whose sum is the logits of a view, at the image's original size."""
        image = paddle.to_tensor(view.image).unsqueeze(0)
        if view.flip:
            image = image.flip(view.flip)
        height, width = image.shape[2:]
        crop, stride = self.protocol.crop_size, self.protocol.stride
        if crop is None:
            crop = stride = (width, height)
        rows, columns = _windows(height, crop[1], stride[1]), _windows(width, crop[0], stride[0])
        logits = {
            (r, c): self._logits(image[:, :, slice(*r), slice(*c)]) for r in rows for c in columns
        }
        # All windows are of one size, and so are their logits.
        _, h, w = logits[rows[0], columns[0]].shape
        downs = {row: self._way_back(h, row, rows, view, 0) for row in rows}
        acrosses = {column: self._way_back(w, column, columns, view, 1) for column in columns}
        return [Part(maps, downs[row], acrosses[column]) for (row, column), maps in logits.items()]

    def _logits(self, image):
        """Logits ``[C, h, w]``, of a SegFormer at the size at which its head makes them."""
        if isinstance(self.model, SegFormer):
            return self.model.decode(self.model.backbone(image))[0]
        return self.model(image)[0][0]

    def _way_back(self, source, window, windows, view, axis):
        """What a window's logits add to the original's, along one side: ``[target, source]``.

        A pixel's logits are the mean over the windows that see it, of which there are as many as
        there are for its row times those for its column.
        """
        times_seen = np.zeros([windows[-1][1], 1])
        for start, end in windows:
            times_seen[start:end] += 1
        align_corners = getattr(self.model, "align_corners", False)
        way = np.zeros([len(times_seen), source])
        way[slice(*window)] = linear_weights(source, window[1] - window[0], align_corners)
        way /= times_seen
        if axis + 2 in view.flip:
            way = way[::-1]
        for kind, size in reversed(view.trans_info):
            # What is not a resize is padding, at the right and the bottom.
            way = resize_rows(way, size[axis]) if kind == "resize" else way[: size[axis]]
        return way


def _windows(length, size, stride):
    """Start and end of each window along one side; the last is pushed back into the image."""
    starts = range(0, max(length - size, 0) + stride, stride)
    ends = [min(start + size, length) for start in starts]
    return [(max(end - size, 0), end) for end in ends]

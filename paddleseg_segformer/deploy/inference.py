"""One image to its label map: at one scale or several, mirrored, whole or in windows."""

import copy
from dataclasses import dataclass, fields
from typing import Optional

import numpy as np
import paddle
import paddle.nn.functional as F

from ..config import build
from ..data.transforms import at_scale
from ..errors import InputError
from ..ops import resize_bilinear
from ..weights import load_weights

PAPER_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


@dataclass(frozen=True)
class Protocol:
    """How an image is looked at.

    Attributes:
        scales: Factors; at each the image is made anew from the original.
        flip_horizontal, flip_vertical: Whether mirrored views are added.
        crop_size, stride: ``(width, height)`` of sliding windows and of their steps; None sees
            the image whole.

    Raises:
        InputError: A scale or step is not positive, or a stride leaves gaps between windows.
    """

    scales: tuple = (1.0,)
    flip_horizontal: bool = False
    flip_vertical: bool = False
    crop_size: Optional[tuple] = None
    stride: Optional[tuple] = None

    def __post_init__(self):
        if not self.scales or min(self.scales) <= 0:
            raise InputError(f"--scales {list(self.scales)}: each scale must be positive.")
        if self.crop_size is None:
            return
        for size, step in zip(self.crop_size, self.stride):
            if not 0 < step <= size:
                raise InputError(
                    f"--stride {list(self.stride)}: must be positive and at most "
                    f"--crop_size {list(self.crop_size)}, or pixels between windows are lost."
                )

    @classmethod
    def of_config(cls, config, **options):
        """What a configuration's ``test_config`` describes, its keys overridden by ``options``.

        The keys are PaddleSeg's: scales and flips count only with ``aug_eval``, ``crop_size`` and
        ``stride`` only with ``is_slide``. ``aug_eval`` without scales means the paper's
        multi-scale test: six scales, each also mirrored.
        """
        options = {**config.test_config, **options}
        known = ("aug_eval", "is_slide", *(field.name for field in fields(cls)))
        for key in options:
            if key not in known:
                raise InputError(f"test_config.{key}: unknown key; known are {', '.join(known)}.")
        protocol = {}
        if options.get("aug_eval"):
            scales = options.get("scales")
            protocol["scales"] = PAPER_SCALES if scales is None else _numbers("scales", scales)
            protocol["flip_horizontal"] = options.get("flip_horizontal", scales is None)
            protocol["flip_vertical"] = options.get("flip_vertical", False)
        if options.get("is_slide"):
            for key in ("crop_size", "stride"):
                if options.get(key) is None:
                    raise InputError(f"--is_slide needs --{key}, too.")
                protocol[key] = _numbers(key, options[key], count=2)
        return cls(**protocol)

    @property
    def flips(self):
        """The axes of ``[N, C, H, W]`` that each view of a scale is mirrored along."""
        flips = [[]]
        if self.flip_horizontal:
            flips += [[3]]
        if self.flip_vertical:
            flips += [flip + [2] for flip in flips]
        return flips


def _numbers(key, value, count=None):
    """A tuple of the numbers that an option gives, alone or in a list."""
    try:
        numbers = np.ravel(value).astype(float).tolist()
    except (TypeError, ValueError):
        numbers = []
    if not numbers or (count is not None and len(numbers) != count):
        wanted = f"{count} numbers" if count else "a number or a list of numbers"
        raise InputError(f"{key}: must be {wanted}, not {value!r}.")
    return tuple(int(n) for n in numbers) if count else tuple(numbers)


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


@paddle.no_grad()
def segment(model, transforms, sample, protocol):
    """Label the pixels of one image.

    Args:
        model: A PaddleSeg model in evaluation mode.
        transforms: PaddleSeg's ``Compose`` of the validation transforms.
        sample: The same transforms' result for the original image: ``img`` float32 ``[3, h, w]``,
            ``trans_info``, and ``path``, the image file, which other scales than 1 are made from.
        protocol: ``Protocol``. Of several views, the mean of their softmax is taken.

    Returns:
        Integer tensor ``[H, W]`` of class indices, at the image's original size.
    """
    views = [(scale, flip) for scale in protocol.scales for flip in protocol.flips]
    if len(views) == 1 and protocol.scales[0] == 1:
        return _scores(model, sample, [], protocol).argmax(axis=1)[0]
    total = 0
    for scale in protocol.scales:
        if scale != 1:
            view = at_scale(transforms, scale)({"img": sample["path"], "trans_info": []})
        else:
            view = sample
        for flip in protocol.flips:
            # Classes last: softmax runs along memory, an order of magnitude faster on a CPU.
            scores = _scores(model, view, flip, protocol).transpose([0, 2, 3, 1])
            total = total + F.softmax(scores)
    return total.argmax(axis=-1)[0]


def _scores(model, view, flip, protocol):
    """Logits ``[1, classes, H, W]`` of one view, at the image's original size."""
    image = paddle.to_tensor(view["img"]).unsqueeze(0)
    if flip:
        image = image.flip(flip)
    logits = model(image)[0] if protocol.crop_size is None else _slide(model, image, protocol)
    if flip:
        logits = logits.flip(flip)
    for kind, (height, width) in reversed(view["trans_info"]):
        if kind == "resize":
            logits = resize_bilinear(logits, (height, width))
        else:  # padding, at the right and the bottom
            logits = logits[:, :, :height, :width]
    return logits


def _slide(model, image, protocol):
    """The mean of the logits of all the windows that see a pixel, as PaddleSeg's."""
    height, width = image.shape[2:]
    total = count = None
    for top, bottom in _windows(height, protocol.crop_size[1], protocol.stride[1]):
        for left, right in _windows(width, protocol.crop_size[0], protocol.stride[0]):
            logits = model(image[:, :, top:bottom, left:right])[0]
            if total is None:
                total = paddle.zeros([1, logits.shape[1], height, width], logits.dtype)
                count = paddle.zeros([1, 1, height, width], logits.dtype)
            total[:, :, top:bottom, left:right] += logits
            count[:, :, top:bottom, left:right] += 1
    return total / count


def _windows(length, size, stride):
    """Start and end of each window along one side; the last is pushed back into the image."""
    starts = range(0, max(length - size, 0) + stride, stride)
    ends = [min(start + size, length) for start in starts]
    return [(max(end - size, 0), end) for end in ends]

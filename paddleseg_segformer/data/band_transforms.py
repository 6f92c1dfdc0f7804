"""PaddleSeg's transforms for images of any number of bands and of more than 8 bits.

They are registered in the place of PaddleSeg's, and give the same 8-bit images of one and three
bands. Where a transform cannot process an image, it raises an ``InputError`` that says what to use.
"""

from __future__ import annotations

import random

import cv2
import numpy as np
from paddleseg import transforms as ps_transforms

from ..errors import InputError


def is_8bit(sample):
    """Whether the image was uint8 when it was read, whatever type it has now."""
    return sample.get("is_8bit", True)


class ByBand:
    """Mixin for transforms whose OpenCV functions take 1, 3 or 4 bands: others one by one.

    All bands get the same random numbers.
    """

    def __call__(self, sample):
        image = sample["img"]
        if isinstance(value := getattr(self, "im_padding_value", 0), (list, tuple)):
            problem = f"im_padding_value is {value!r}; it must be one number, for all bands"
            raise InputError(f"{type(self).__name__}: {problem}.")
        if image.ndim == 2 or image.shape[2] in (3, 4):
            return super().__call__(sample)
        states, results = (np.random.get_state(), random.getstate()), []
        for band in np.ascontiguousarray(image.transpose(2, 0, 1)):
            np.random.set_state(states[0])
            random.setstate(states[1])
            info = list(sample.get("trans_info", []))
            results.append(super().__call__({**sample, "img": band, "trans_info": info}))
        return {**results[-1], "img": np.stack([result["img"] for result in results], axis=2)}


class EightBitOnly:
    """Mixin for transforms that limit values to 0 to 255."""

    remedy: str

    def __call__(self, sample):
        if not is_8bit(sample):
            raise InputError(f"{type(self).__name__} is for 8-bit images only; {self.remedy}.")
        return super().__call__(sample)


class Resize(ByBand, ps_transforms.Resize):
    """PaddleSeg's ``Resize`` for any number of bands."""


class Padding(ByBand, ps_transforms.Padding):
    """PaddleSeg's ``Padding`` for any number of bands; no copy of an image of the target size."""

    def __call__(self, sample):
        size = sample["img"].shape[:2]
        if tuple(self.target_size) != size[::-1]:
            return super().__call__(sample)
        sample["trans_info"].append(("padding", size))
        return sample


class ScalePadding(ps_transforms.ScalePadding):
    """PaddleSeg's ``ScalePadding`` with labels resized to the nearest pixel, not interpolated.

    Images of more than 8 bits keep their values.

    Raises:
        InputError: It is used in validation or prediction, which cannot undo its padding.
    """

    def __call__(self, sample):
        fields = sample.get("gt_fields")
        if not fields:
            raise InputError(
                "ScalePadding is for training only, as predictions cannot undo it; use Resize, or "
                "ResizeByLong and Padding, in val_dataset."
            )
        height, width = sample["img"].shape[:2]
        side = max(height, width)
        inner = np.s_[(side - height) // 2 :, (side - width) // 2 :]
        size = tuple(self.target_size)
        if is_8bit(sample):
            sample = super().__call__({**sample, "gt_fields": []})
        else:
            bands = sample["img"].shape[2:]
            square = np.full([side, side, *bands], self.im_padding_value, "float32")
            square[inner][:height, :width] = sample["img"]
            sample["img"] = cv2.resize(square, size, interpolation=cv2.INTER_CUBIC)
        for key in fields:
            square = np.full([side, side], self.label_padding_value, "uint8")
            square[inner][:height, :width] = sample[key]
            sample[key] = cv2.resize(square, size, interpolation=cv2.INTER_NEAREST)
        return {**sample, "gt_fields": fields}


class PaddingByAspectRatio(ByBand, ps_transforms.PaddingByAspectRatio):
    """PaddleSeg's ``PaddingByAspectRatio`` for any number of bands."""


class RandomPaddingCrop(ByBand, ps_transforms.RandomPaddingCrop):
    """PaddleSeg's ``RandomPaddingCrop`` for any number of bands."""


class RandomRotation(ByBand, ps_transforms.RandomRotation):
    """PaddleSeg's ``RandomRotation`` for any number of bands."""


class RandomAffine(EightBitOnly, ByBand, ps_transforms.RandomAffine):
    """PaddleSeg's ``RandomAffine`` for any number of bands of 8 bits."""

    remedy = "use RandomRotation and ResizeStepScaling for others"


class RandomNoise(EightBitOnly, ps_transforms.RandomNoise):
    """PaddleSeg's ``RandomNoise``, which is not for images of more than 8 bits."""

    remedy = "remove it for others"


class RandomDistort(EightBitOnly, ps_transforms.RandomDistort):
    """PaddleSeg's ``RandomDistort``, for 8-bit RGB images, or gray ones without color changes."""

    remedy = "use PhotometricDistortion with saturation: null and hue: null for others"

    def __call__(self, sample):
        changes_color = self.saturation_prob > 0 or self.hue_prob > 0
        if sample["img"].shape[2:] != (3,) and (sample["img"].ndim == 3 or changes_color):
            raise InputError(f"RandomDistort is for RGB images only; {self.remedy}.")
        return super().__call__(sample)


class RandomBlur(ByBand, ps_transforms.RandomBlur):
    """PaddleSeg's ``RandomBlur``, which keeps the values of images of more than 8 bits.

    Raises:
        InputError: ``blur_type`` is ``median`` or ``random``, and the image has more than 8 bits.
    """

    def __call__(self, sample):
        if is_8bit(sample):
            return super().__call__(sample)
        if self.blur_type in ("median", "random"):
            raise InputError(
                f"RandomBlur: blur_type {self.blur_type} is for 8-bit images only; use gaussian or "
                "blur for others."
            )
        # The same random numbers as PaddleSeg's.
        if self.prob > 0 and np.random.randint(0, int(1 / min(self.prob, 1))) == 0:
            side = np.random.randint(3, 10) | 1
            if self.blur_type == "blur":
                sample["img"] = cv2.blur(sample["img"], (side, side))
            else:
                sample["img"] = cv2.GaussianBlur(sample["img"], (side, side), 0)
        return sample

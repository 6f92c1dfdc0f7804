"""Training batches on their way to a GPU: as uint8, in pinned memory, while the last step runs."""

import copy

import numpy as np
import paddle
from paddleseg import datasets

from ..data import Dataset
from ..data.band_transforms import Padding
from ..data.transforms import Normalize


class DeferredNormalize:
    """``Normalize``, with a ``Padding`` by 0 after it, that leaves 8-bit images to the device.

    Attributes:
        table: The result by value, float32 ``[256, channels]``, or ``[256, 1]`` for all channels.
    """

    def __init__(self, normalize, padded):
        self._normalize, self._padded = normalize, padded
        self.table = normalize.table[0]

    def __call__(self, samples):
        """Convert a batch's images after all other transforms, in place.

        If all values are whole numbers from 0 to 255, ``img`` becomes uint8, to be looked up in
        ``table``, and ``valid_rows`` ``[1, H, 1]`` and ``valid_columns`` ``[1, 1, W]``, int32, are
        1 where the image is and 0 in the padding. Otherwise ``img`` is normalized, as float32.
        """
        with np.errstate(invalid="ignore"):  # NaN
            images = [sample["img"].astype("uint8", copy=False) for sample in samples]
        is_8bit = all(map(np.array_equal, images, [sample["img"] for sample in samples]))
        for sample, image in zip(samples, images):
            height, width = image.shape[1:]
            if self._padded:
                _, (height, width) = sample["trans_info"][-1]
            rows = (np.arange(image.shape[1]) < height)[None, :, None]
            columns = (np.arange(image.shape[2]) < width)[None, None, :]
            if is_8bit:
                sample["img"] = image
                sample["valid_rows"] = rows.astype("int32")
                sample["valid_columns"] = columns.astype("int32")
            else:
                whole = self._normalize({**sample, "img": sample["img"].transpose(1, 2, 0)})["img"]
                whole = np.atleast_3d(whole).transpose(2, 0, 1)
                sample["img"] = np.where(rows & columns, whole, np.float32(0))


def defer_normalize(dataset):
    """Take the last transform but padding, ``Normalize``, out of a training set.

    Returns:
        A copy of the data set without it, and a ``DeferredNormalize`` that takes its place; or the
        data set and None, if it has other transforms, or reads its samples in its own way.
    """
    # The only ones known to do nothing with an image after its transforms.
    if type(dataset).__getitem__ not in (Dataset.__getitem__, datasets.Dataset.__getitem__):
        return dataset, None
    others, padding = list(dataset.transforms.transforms), []
    if others and type(others[-1]) is Padding and not np.any(others[-1].im_padding_value):
        padding = [others.pop()]
    normalize = others.pop() if others else None
    if type(normalize) is not Normalize:
        return dataset, None
    # Normalize refuses 8-bit images if its mean is above 1, and other numbers of bands.
    channels = normalize.table.shape[2]
    if normalize.mean.max() > 1 or channels not in (1, getattr(dataset, "img_channels", 3)):
        return dataset, None
    dataset = copy.copy(dataset)
    dataset.transforms = copy.copy(dataset.transforms)
    dataset.transforms.transforms = others + padding
    return dataset, DeferredNormalize(normalize, padded=bool(padding))


def on_gpu():
    """Whether Paddle's device is a GPU."""
    return paddle.get_device().startswith("gpu")


def upload(arrays):
    """Copy arrays to the GPU, after the work that it has already, without waiting for it.

    Returns:
        The tensors on the GPU, and those in pinned memory, which must be kept until it is done.
    """
    pinned = {k: paddle.to_tensor(v, place=paddle.CUDAPinnedPlace()) for k, v in arrays.items()}
    return {name: tensor.cuda(blocking=False) for name, tensor in pinned.items()}, pinned

"""8-bit images to float32 by a lookup table per channel, on the images' device."""

import numpy as np
import paddle


class ChannelTables:
    """Looks up the values of 8-bit images; unlike arithmetic, the same on each device.

    Args:
        tables: float32 array ``[256, channels]``, or ``[256, 1]`` for all channels.
    """

    def __init__(self, tables):
        starts = 1 + 256 * np.arange(tables.shape[1], dtype="int32")
        self._starts = paddle.to_tensor(starts.reshape([1, -1, 1, 1]))
        values = np.concatenate([np.zeros(1), tables.T.ravel()])  # the first one: not valid
        self._values = paddle.to_tensor(values.astype("float32"))

    def __call__(self, images, valid):
        """Look up images.

        Args:
            images: uint8 tensor ``[N, C, H, W]``.
            valid: int32 tensor that broadcasts to it: 1, or 0 where the result is 0.

        Returns:
            float32 tensor ``[N, C, H, W]``.
        """
        index = (images.astype("int32") + self._starts) * valid
        return paddle.gather(self._values, index.flatten()).reshape(images.shape)

"""Prediction of georeferenced TIFFs, and of TIFFs of any size window by window, with rasterio."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import zlib

import numpy as np

from ..data.image_io import fit_channels, to_8bit_scale, type_name
from ..data.raster_io import quiet_rasterio
from ..errors import InputError, RunError
from ..fs import atomic_path, cleanup_on_error
from ..log import progress
from .predictor import Prediction
from .segmenter import Segmenter
from .visualize import to_picture

logger = logging.getLogger(__name__)

TIFF_ENDINGS = (".tif", ".tiff")
# Pixels times bands above which a raster is segmented window by window. The overlay of an RGB image
# of this size takes 3 GB.
MAX_VALUES = 1 << 27
WINDOW = 1024  # if the test configuration has no sliding windows; they overlap by a quarter
STRIP_WIDTH = 8192  # only windows that overlap a strip are in memory
PREVIEW_SIZE = 2048  # longest side of the pictures of a large raster
GDAL_CACHE = 256 << 20  # bytes; GDAL's default is 5 % of the machine's memory
NO_DATA = 255


def open_raster(path, channels):
    """Open a TIFF that has coordinates, or more than ``MAX_VALUES`` values.

    Args:
        path: ``Path`` of a file of any kind.
        channels: Number of channels of the model's input.

    Returns:
        A ``Raster``, to be closed; None for all other files, and if rasterio is not installed.
    """
    if path.suffix.lower() not in TIFF_ENDINGS:
        return None
    try:
        import rasterio
    except ImportError:
        return None
    try:
        file = _open(path)
    except rasterio.errors.RasterioError:
        return None
    raster = Raster(path, file, channels)
    is_several_pages = bool(file.subdatasets)
    if not is_several_pages and (raster.is_large or raster.has_coordinates):
        return raster
    raster.close()
    return None


class Raster:
    """An open TIFF whose pixels are read window by window.

    Attributes:
        path: The file's path.
        shape: ``(channels, height, width)`` of the model's input.
        coordinates: rasterio's options that give another file the same coordinates.
        is_large: Whether it is to be segmented window by window.
        dtype: The type of its values, such as ``"uint16"``.
    """

    def __init__(self, path, file, channels):
        from rasterio.enums import ColorInterp, MaskFlags

        self.path, self._file = path, file
        self.shape = (channels, *file.shape)
        self.is_large = file.width * file.height * max(file.count, channels) > MAX_VALUES
        self.coordinates = {"crs": file.crs, "transform": file.transform}
        points, points_crs = file.gcps
        if points:
            self.coordinates = {"gcps": points, "crs": points_crs}
        if file.rpcs:
            self.coordinates["rpcs"] = file.rpcs
        self._has_alpha = file.count > 1 and file.colorinterp[-1] == ColorInterp.alpha
        flags = file.mask_flag_enums[0]
        alpha_is_input = MaskFlags.alpha in flags and file.count == channels
        self._is_masked = MaskFlags.all_valid not in flags and not alpha_is_input
        self._colors = None
        if file.colorinterp[0] == ColorInterp.palette:
            table = file.colormap(1)
            self._colors = np.array([table[i][:3] for i in range(len(table))], "uint8")
        bits = int(file.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8))
        self._factor = 255 // (2**bits - 1) if bits < 8 else 1  # as Pillow reads 1, 2 and 4 bits
        self.dtype = type_name(file.dtypes[0])
        self._lock = threading.Lock()  # rasterio's datasets are not for several threads

    def close(self):
        self._file.close()

    @property
    def has_coordinates(self):
        if "transform" in self.coordinates and self.coordinates["transform"].is_identity:
            return bool(self.coordinates["crs"]) or "rpcs" in self.coordinates
        return True

    def valid(self, window=None, size=None):
        """Which pixels have data, by the file's nodata value, mask or alpha: bool ``[H, W]``.

        Args:
            window: ``((top, bottom), (left, right))``; None means the whole raster.
            size: ``(height, width)`` of the result, to reduce it; None means the window's.
        """
        if self._is_masked:
            return self._read(self._file.dataset_mask, window, size) != 0
        (top, bottom), (left, right) = window or ((0, self.shape[1]), (0, self.shape[2]))
        return np.ones(size or (bottom - top, right - left), bool)

    def read(self, window=None, size=None):
        """The pixels as ``image_io.read_image`` returns them, and which of them have data.

        Args:
            window, size: As of ``valid``.

        Returns:
            uint8 or float32 array ``[H, W, channels]``, or ``[H, W]`` for one channel, which is 0
            where the raster has no data; and ``valid``.

        Raises:
            InputError: The file is damaged, or its pixels do not fit the model.
        """
        valid = self.valid(window, size)
        values = self._read(self._file.read, window, size and (self._file.count, *size))
        if self._colors is not None:
            values = self._colors[values[0]].transpose(2, 0, 1)
        elif self._factor > 1:
            values *= self._factor
        values[:, ~valid] = 0
        values = values[0] if len(values) == 1 else values.transpose(1, 2, 0)
        values = to_8bit_scale(np.ascontiguousarray(values), self.path)
        return fit_channels(values, self.shape[0], self.path, self._has_alpha), valid

    def __getitem__(self, key):
        """The pixels of slices of the channels (all), rows and columns: ``[C, h, w]``.

        None if there are no data in them.
        """
        image, valid = self.read(tuple((part.start, part.stop) for part in key[1:]))
        return np.atleast_3d(image).transpose(2, 0, 1) if valid.any() else None

    def _read(self, function, window, shape):
        from rasterio.errors import RasterioError

        try:
            with self._lock:
                return function(window=window, out_shape=shape)
        except RasterioError as error:
            reason = str(error.__cause__ or error).rstrip(".")
            raise InputError(f"{self.path}: is damaged or truncated ({reason}).") from error


def segment_large(predictor, raster, path):
    """Segment a ``Raster`` of any size by sliding windows, in bounded memory.

    The label map is that of the whole image with the same windows. Without sliding windows in the
    test configuration, they are of ``WINDOW`` pixels, or of an exported graph's input size.

    Args:
        predictor: ``Predictor``.
        raster: ``Raster``.
        path: ``Path`` of the label map, which is written by ``new_label_map``.

    Returns:
        The ``Prediction`` at a reduced size, of at most ``PREVIEW_SIZE`` pixels per side.

    Raises:
        InputError: The raster is damaged, or cannot be segmented by windows with this model.
        RunError: The label map cannot be written.
    """
    import rasterio

    segmenter = predictor.segmenter
    if not isinstance(segmenter, Segmenter):
        windows = "a raster of this size is segmented by overlapping windows"
        raise InputError(f"{raster.path}: {windows}; export the graph with --output_op none.")
    inputs, test_config = segmenter.augmented_inputs.of_raster(raster), segmenter.test_config
    if test_config.crop_size is None:
        height, width = getattr(segmenter.model, "size", None) or (WINDOW, WINDOW)
        stride = width - width // 4, height - height // 4
        test_config = dataclasses.replace(test_config, crop_size=(width, height), stride=stride)
        logger.info("%s: %s", raster.path, test_config.describe())
    _, height, width = raster.shape
    factor = PREVIEW_SIZE / max(height, width, PREVIEW_SIZE)
    size = max(1, round(height * factor)), max(1, round(width * factor))
    with rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE):
        with new_label_map(path, raster, predictor) as write:
            parts = segmenter.strips(inputs, test_config, STRIP_WIDTH)
            parts = progress(parts, height * width, raster.path.name, "pixel", _pixels)
            for rows, columns, labels in parts:
                window = (rows.start, rows.stop), (columns.start, columns.stop)
                labels = labels.numpy().astype("uint8")
                labels[~raster.valid(window)] = NO_DATA
                write(labels, window)
        image, _ = raster.read(size=size)
        with _open(path) as file:
            labels = file.read(1, out_shape=size)
    return Prediction(labels, to_picture(image), predictor.classes, predictor.palette)


def _pixels(part):
    """The number of pixels of a part of ``Segmenter.strips``."""
    rows, columns, _ = part
    return (rows.stop - rows.start) * (columns.stop - columns.start)


@contextlib.contextmanager
def new_label_map(path, raster, predictor):
    """Create a GeoTIFF of a label map: uint8, compressed, with the coordinates of a ``Raster``.

    Its color table is the palette, its nodata value ``NO_DATA``, and its tags ``class_0``,
    ``class_1``, … the classes' names. It has its name only once it is complete.

    Args:
        path: ``Path`` of the file.
        raster: The ``Raster`` that it is of.
        predictor: Its classes and palette.

    Yields:
        A function that writes a part: a uint8 array ``[h, w]``, and its window as of
        ``Raster.read``, None for all.

    Raises:
        RunError: Writing fails.
    """
    import rasterio

    _, height, width = raster.shape
    options = {"dtype": "uint8", "count": 1, "nodata": NO_DATA}
    options |= {"height": height, "width": width, "compress": "deflate", "BIGTIFF": "IF_SAFER"}
    options |= {"tiled": True, "blockxsize": 512, "blockysize": 512, **raster.coordinates}
    colors = {NO_DATA: (0, 0, 0, 0)}
    for i, (_, color) in enumerate(zip(predictor.classes, predictor.palette)):
        colors[i] = (*map(int, color), 255)
    with cleanup_on_error(path), atomic_path(path) as partial:
        try:
            file, sums = _open(partial, "w", **options), {}

            def write(labels, window=None):
                file.write(labels, 1, window=window)
                sums[window] = zlib.crc32(labels.tobytes())

            with file:
                file.write_colormap(1, colors)
                file.update_tags(**{f"class_{i}": x for i, x in enumerate(predictor.classes)})
                yield write
            with _open(partial) as file:  # not all errors of writing are raised
                for window, written in sums.items():
                    if zlib.crc32(file.read(1, window=window).tobytes()) != written:
                        raise RunError(f"--save_dir: {path} cannot be written; is the disk full?")
        except rasterio.errors.RasterioError as error:
            reason = str(error.__cause__ or error).rstrip(".")
            raise RunError(f"--save_dir: {path} cannot be written ({reason}).") from error


def _open(path, mode="r", **options):
    import rasterio

    with quiet_rasterio():
        return rasterio.open(path, mode, driver="GTiff", **options)

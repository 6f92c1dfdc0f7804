"""The bands of image files of any type: 16-bit PNG, TIFF, NumPy arrays, and what Pillow reads."""

from __future__ import annotations

import logging
import math
import warnings
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .size_limit import PNG_SIGNATURE, check_header, check_size, png_size

NPY_SIGNATURE = b"\x93NUMPY"
# Of TIFF and BigTIFF in both byte orders.
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Tags of TIFF. Reduced pages and masks belong to another page.
SUBFILE_TYPE, BITS_PER_SAMPLE, SAMPLES_PER_PIXEL, EXTRA_SAMPLES = 254, 258, 277, 338
SAMPLE_FORMAT, GDAL_NODATA = 339, 42113
MAX_PAGES = 512  # each is found by following the ones before; OpenCV handles as many bands
REDUCED_OR_MASK, ALPHA, SIGNED = 1 | 4, (1, 2), 2
# What Pillow may read. Other formats run programs (EPS, by Ghostscript) or have no use here.
PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "TGA")
PILLOW_FORMATS += ("DIB", "PCX", "SGI")
WIDE_MODES = ("I", "F")  # and I;16, I;16B, …: values of more than 8 bits

# Pillow warns above MAX_IMAGE_PIXELS, 89 million, and fails above twice as many, of any file.
# Satellite images have more; check_size bounds them.
if Image.MAX_IMAGE_PIXELS:
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, 1 << 32)


def open_image(data, bands=3):
    """Pillow's image of the bytes of a file, of which only the header is read.

    Args:
        data: The bytes.
        bands: Least number of bands that the pixels will be read as; see ``check_size``.

    Raises:
        Exception: They are not of ``PILLOW_FORMATS``, damaged, or the image is too large.
    """
    check_header(data, bands)
    image = Image.open(BytesIO(data), formats=PILLOW_FORMATS)
    bands = max(bands, len(image.getbands()))
    check_size(len(data), image.height, image.width, bands, image.mode[0] not in WIDE_MODES)
    return image


class Bands(NamedTuple):
    """An image as a file stores it."""

    values: np.ndarray  # of any numeric type, [H, W], or [H, W, N] if there are several bands
    has_alpha: bool = False  # whether the last band is transparency, by the format's definition
    nodata: float | None = None  # the value of pixels without data, if a TIFF names one


def is_deep_png(data):
    """Whether the bytes, of which 26 suffice, begin a PNG of 16 bits."""
    return data[24:25] == b"\x10" and data.startswith(PNG_SIGNATURE)


def is_alpha_png(data):
    """Whether the bytes, of which 26 suffice, begin a PNG of a color type with alpha."""
    return data[25:26] in (b"\4", b"\6") and data.startswith(PNG_SIGNATURE)


def read_bands(data):
    """Read the bands of an image from the bytes of its file; no value is changed.

    Color images become RGB. Pages of a TIFF are bands; of an animation, the first frame is read.

    Args:
        data: Bytes of a file of ``PILLOW_FORMATS``, a TIFF that rasterio reads, or ``.npy``.

    Returns:
        ``Bands``.

    Raises:
        Exception: The bytes are no image, or damaged: of the type that the decoder raises.
    """
    if data.startswith(NPY_SIGNATURE):
        return _read_npy(data)
    if data.startswith(TIFF_SIGNATURES):
        return _read_tiff(data)
    if is_deep_png(data):  # Pillow would read 8 bits of a color image
        return _read_deep_png(data)
    with open_image(data) as image:
        return from_pillow(image)


def from_pillow(image):
    """``Bands`` of a Pillow image, with its EXIF orientation applied, except of WebP.

    Raises:
        ValueError: The values are 32-bit integers.
    """
    has_alpha, is_gray_file = image.mode in ("RGBA", "LA"), image.format in ("PNG", "PPM")
    if image.format == "TIFF":  # a fourth band need not be transparency
        has_alpha = has_alpha and image.tag_v2.get(EXTRA_SAMPLES, (0,))[-1] in ALPHA
    if image.format != "WEBP":  # in WebP, OpenCV and browsers ignore it
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and is_gray_file):
        return Bands(np.asarray(image).astype("uint16"))
    if image.mode == "I":
        raise ValueError("not an image of 8 or 16-bit values or floats")
    if image.mode not in ("L", "LA", "RGB", "RGBA", "RGBX", "F"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    return Bands(np.array(image), has_alpha)


def read_size(data):
    """Width, height and number of bands in the header of a ``.npy`` file or a TIFF.

    Raises:
        Exception: As of ``read_bands``.
    """
    if data.startswith(NPY_SIGNATURE):
        height, width, *bands = _npy_header(BytesIO(data))[0]
        return width, height, math.prod(bands)
    with suppress(UnidentifiedImageError), open_image(data) as image:
        return (*image.size, image.tag_v2.get(SAMPLES_PER_PIXEL, 1) * image.n_frames)
    with _open_tiff(data) as first:
        return first.width, first.height, first.count * max(len(first.subdatasets), 1)


def _npy_header(file):
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        header = np.lib.format.read_array_header_1_0(file)
    else:
        header = np.lib.format.read_array_header_2_0(file)
    shape, _, dtype = header
    if dtype.kind not in "buif" or len(shape) not in (2, 3) or min(shape) < 1:
        expected = "an array [height, width] or [height, width, bands] of numbers"
        raise ValueError(f"{dtype} {list(shape)} is not {expected}")
    return header


def _read_npy(data):
    file = BytesIO(data)
    shape, is_fortran, dtype = _npy_header(file)
    check_size(len(data), *shape[:2], max(3, math.prod(shape[2:])), dtype == np.uint8)
    # Not np.load, which allocates what the header claims.
    values = np.frombuffer(data, dtype, math.prod(shape), file.tell())
    values = values.reshape(shape, order="F" if is_fortran else "C")
    return Bands(values[:, :, 0] if shape[2:] == (1,) else values)


def _read_deep_png(data):
    is_gray_with_alpha = data[25:26] == b"\4"
    check_size(len(data), *png_size(data), 4 if is_alpha_png(data) else 3, is_8bit=False)
    values = cv2.imdecode(np.frombuffer(data, "uint8"), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise ValueError("the file is damaged or truncated")
    if is_gray_with_alpha:
        return Bands(values[:, :, 2:], has_alpha=True)
    if values.ndim == 2:
        return Bands(values)
    if values.shape[2] == 3:
        return Bands(cv2.cvtColor(values, cv2.COLOR_BGR2RGB))
    return Bands(cv2.cvtColor(values, cv2.COLOR_BGRA2RGBA), has_alpha=True)


def _read_tiff(data):
    """Read one page of 8 bits, or of one 16-bit or float band, by Pillow; others by rasterio."""
    with suppress(UnidentifiedImageError), open_image(data) as image:
        if _has_one_page(image) and _is_complete(image):
            return from_pillow(image)._replace(nodata=_nodata(image))
    with _open_tiff(data) as first:
        return _read_pages(first, len(data))


@contextmanager
def quiet_rasterio():
    """No warning of TIFFs without coordinates, and no log of GDAL's errors, which are raised.

    Nor of its warnings, of which a damaged file can cause one for each pair of pages.
    """
    from rasterio.errors import NotGeoreferencedWarning

    logging.getLogger("rasterio").setLevel(logging.ERROR)  # it logs GDAL's errors as INFO
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


@contextmanager
def _open_tiff(data):
    """rasterio's data set of a TIFF, whose errors become ``ValueError``."""
    try:
        import rasterio
    except ImportError as error:
        needs = "this TIFF needs rasterio: pip install 'paddleseg-segformer[raster]'"
        raise ValueError(needs) from error
    with quiet_rasterio():
        try:
            # Only this driver: others read what a file refers to, also from the network.
            with rasterio.MemoryFile(data) as memory, memory.open(driver="GTiff") as first:
                yield first
        except rasterio.errors.RasterioError as error:
            raise ValueError("the TIFF is damaged, or of an unknown kind") from error


def _nodata(image):
    with suppress(ValueError):
        return float(image.tag_v2.get(GDAL_NODATA, "").strip(" \0"))


def _has_one_page(image):
    pages = 0
    for index in range(MAX_PAGES):
        try:
            image.seek(index)
        except EOFError:
            break
        pages += not image.tag_v2.get(SUBFILE_TYPE, 0) & REDUCED_OR_MASK
    image.seek(0)
    return pages <= 1


def _is_complete(image):
    """Whether Pillow reads all bands of a TIFF, and all bits of them."""
    samples, bands = image.tag_v2.get(SAMPLES_PER_PIXEL, 1), len(image.getbands())
    has_8_bits = max(image.tag_v2.get(BITS_PER_SAMPLE, (1,))) <= 8
    is_signed = SIGNED in image.tag_v2.get(SAMPLE_FORMAT, ())
    return samples <= bands and (has_8_bits or bands == 1) and not is_signed and image.mode != "I"


def _read_pages(first, file_size):
    import rasterio

    names, is_8bit = first.subdatasets, {*first.dtypes} == {"uint8"}
    if len(names) > MAX_PAGES:
        raise ValueError(f"it has more than {MAX_PAGES} pages; write fewer, of several bands each")
    check_size(file_size, *first.shape, max(3, first.count, first.count * len(names)), is_8bit)
    has_alpha = first.colorinterp[-1] == rasterio.enums.ColorInterp.alpha and not names
    pages = [] if names else [first.read()]
    for name in names:
        with rasterio.open(name, driver="GTiff") as page:
            if page.shape != first.shape or page.count != first.count:
                raise ValueError("its pages have different sizes or numbers of bands")
            pages.append(page.read())
    values = np.concatenate(pages)
    if len(values) == 1:
        return Bands(values[0], nodata=first.nodata)
    return Bands(np.ascontiguousarray(values.transpose(1, 2, 0)), has_alpha, first.nodata)

"""The bound on the memory of decoded images: it holds before decoding, for every format."""

import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from paddleseg_segformer.data import size_limit
from paddleseg_segformer.data.image_io import decode_image, read_label
from paddleseg_segformer.data.size_limit import check_header, check_size
from paddleseg_segformer.errors import InputError

ANIMATED = {"save_all": True, "append_images": [Image.new("RGB", (40, 30), "red")]}
# Pillow's name of the format, the mode and the options by a name.
FORMATS = {
    "JPEG": ("JPEG", "RGB", {}),
    "progressive JPEG": ("JPEG", "RGB", {"progressive": True}),
    # A frame header in a comment, of another size, which is not the image's.
    "JPEG with a comment": ("JPEG", "RGB", {"comment": b"\xff\xc0\0\x11\x08\0\1\0\1\3"}),
    "PNG": ("PNG", "RGB", {}),
    "PNG of 16 bits": ("PNG", "I;16", {}),
    "animated PNG": ("PNG", "RGB", ANIMATED),
    "BMP": ("BMP", "RGB", {}),
    "GIF": ("GIF", "P", {}),
    "animated GIF": ("GIF", "RGB", ANIMATED),
    "lossy WebP": ("WEBP", "RGB", {}),
    "lossless WebP": ("WEBP", "RGB", {"lossless": True}),
    "animated WebP": ("WEBP", "RGB", ANIMATED),
    "TIFF": ("TIFF", "RGB", {}),
    "TIFF of floats": ("TIFF", "F", {}),
    "PPM": ("PPM", "RGB", {}),
    "JPEG2000": ("JPEG2000", "RGB", {}),
    "TGA": ("TGA", "RGB", {}),
}


def encoded(file_format, mode="RGB", options=None, size=(40, 30)):
    file = io.BytesIO()
    Image.new(mode, size).save(file, file_format, **(options or {}))
    return file.getvalue()


def forbid_decoding(monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded by OpenCV"))
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded by Pillow"))


@pytest.mark.parametrize("name", FORMATS)
def test_the_bound_holds_before_decoding(name, monkeypatch):
    """It is that of the array: with a byte less, nothing is decoded."""
    data = encoded(*FORMATS[name])
    image = decode_image(data)
    assert image.shape == (30, 40, 3)
    monkeypatch.setattr(size_limit, "FACTOR", 0)
    monkeypatch.setattr(size_limit, "SMALL", image.nbytes)
    np.testing.assert_array_equal(decode_image(data), image)
    monkeypatch.setattr(size_limit, "SMALL", image.nbytes - 1)
    forbid_decoding(monkeypatch)
    if "WebP" in name:
        monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("allocated by Pillow"))
    with pytest.raises(InputError, match=r"^a\.x: cannot be read as an image \(40x30 pixels of 3"):
        decode_image(data, "a.x")


def bmp_of_os2():
    header = struct.pack("<IHHHH", 12, 40, 30, 1, 24)
    return b"BM" + struct.pack("<IHHI", 26 + 30 * 120, 0, 0, 26) + header + bytes(30 * 120)


HEADERS = {
    "a BMP from top to bottom": encoded("BMP").replace(
        struct.pack("<ii", 40, 30), struct.pack("<ii", 40, -30), 1
    ),
    "a BMP of OS/2": bmp_of_os2(),
    "a JPEG with fill bytes": encoded("JPEG").replace(b"\xff\xc0", b"\xff\xff\xff\xc0", 1),
    "a JPEG with bytes between": encoded("JPEG").replace(b"\xff\xc0", b"\0\1\xff\0\xff\xc0", 1),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_are_read_as_opencv_reads_them(name, monkeypatch):
    image = cv2.imdecode(np.frombuffer(HEADERS[name], "uint8"), cv2.IMREAD_COLOR)
    assert image.shape == (30, 40, 3)
    monkeypatch.setattr(size_limit, "FACTOR", 0)
    monkeypatch.setattr(size_limit, "SMALL", 3599)
    with pytest.raises(ValueError, match=r"^40x30 pixels of 3 bands take"):
        check_header(HEADERS[name])


def test_a_frame_that_is_larger_than_the_animation(monkeypatch):
    """Pillow enlarges the image to it."""
    data = encoded("GIF", "P").replace(struct.pack("<HH", 40, 30), struct.pack("<HH", 1, 1), 1)
    assert decode_image(data).shape == (30, 40, 3)
    monkeypatch.setattr(size_limit, "FACTOR", 0)
    monkeypatch.setattr(size_limit, "SMALL", 3599)
    with pytest.raises(InputError, match="40x30 pixels"):
        decode_image(data)


@pytest.mark.parametrize("file_format, mode", [("PNG", "P"), ("TIFF", "L"), ("BMP", "L")])
def test_labels_are_counted_as_one_band(file_format, mode, tmp_path, monkeypatch):
    path = tmp_path / "label.x"
    path.write_bytes(encoded(file_format, mode))
    monkeypatch.setattr(size_limit, "FACTOR", 0)
    monkeypatch.setattr(size_limit, "SMALL", 1200)
    assert read_label(path).shape == (30, 40)
    monkeypatch.setattr(size_limit, "SMALL", 1199)
    forbid_decoding(monkeypatch)
    with pytest.raises(InputError, match=r"label\.x: cannot be .* \(40x30 pixels of 1 band take"):
        read_label(path)


@pytest.mark.parametrize(
    "file_size, height, width, bands, is_8bit",
    [
        (300, 10_000, 10_000, 3, True),  # a photo without content
        (50, 20_000, 20_000, 1, True),  # a label map of one class
        (5_000_000, 20_000, 20_000, 3, True),  # a mosaic of aerial images, most of it empty
        (20_000_000, 10_000, 10_000, 4, False),
    ],
)
def test_large_images_are_allowed(file_size, height, width, bands, is_8bit):
    check_size(file_size, height, width, bands, is_8bit)


@pytest.mark.parametrize(
    "file_size, height, width, bands, is_8bit",
    [
        (294, 13_820, 13_820, 3, True),  # a GIF that a fuzz target found
        (1_000_000, 20_000, 20_000, 3, True),
        (1_000_000, 10_000, 10_000, 3, False),
        (1 << 40, 40_000, 40_000, 3, True),  # 4.8 GB, whatever is in the file
    ],
)
def test_larger_images_are_errors(file_size, height, width, bands, is_8bit):
    with pytest.raises(ValueError, match=f"^{width}x{height} pixels of {bands} bands take"):
        check_size(file_size, height, width, bands, is_8bit)


def test_the_scans_of_a_jpeg_are_bounded():
    """Each is of a few bytes, and changes all coefficients."""
    data = encoded("JPEG", options={"progressive": True})
    scans = data.count(b"\xff\xda")
    start, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    more = data[:end] + data[start:end] * (size_limit.MAX_SCANS - scans)
    assert decode_image(more + b"\xff\xd9").shape == (30, 40, 3)
    with pytest.raises(InputError, match="has more than 200 scans"):
        decode_image(more + data[start:end] + b"\xff\xd9")

"""Image files of any format, against Pillow."""

import cv2
import numpy as np
import pytest
from PIL import Image

from paddleseg_segformer.data.image_io import decode_image, read_image
from paddleseg_segformer.errors import InputError


@pytest.fixture
def colors():
    """Patches of 16 pixels, aligned with JPEG blocks."""
    patches = np.random.default_rng(0).integers(30, 225, [4, 6, 3]).astype("uint8")
    return patches.repeat(16, axis=0).repeat(16, axis=1)


MODES = [("RGB", "png"), ("L", "png"), ("RGBA", "png"), ("LA", "png"), ("P", "png"), ("1", "png")]
MODES += [("RGB", "jpg"), ("L", "jpg"), ("RGB", "webp"), ("RGB", "bmp"), ("CMYK", "tif")]
MODES += [("P", "gif")]


@pytest.mark.parametrize("mode, ending", MODES)
def test_every_mode_is_read_as_8_bit_rgb(mode, ending, colors, tmp_path):
    path = tmp_path / f"image.{ending}"
    Image.fromarray(colors).convert(mode).save(path)
    expected = np.asarray(Image.open(path).convert("RGB")).astype(int)
    for actual in (read_image(path), decode_image(path.read_bytes())):
        assert actual.dtype == np.uint8
        np.testing.assert_allclose(actual, expected, atol=2)


def test_cmyk_jpeg(colors, tmp_path):
    Image.fromarray(colors).convert("CMYK").save(tmp_path / "image.jpg", quality=95)
    actual = read_image(tmp_path / "image.jpg").astype(int)
    assert np.abs(actual - colors).mean() < 8


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bits_are_scaled_to_8(ending, colors, tmp_path):
    path = str(tmp_path / f"image.{ending}")
    cv2.imwrite(path, colors[:, :, ::-1].astype("uint16") * 257)
    np.testing.assert_array_equal(read_image(path), colors)
    cv2.imwrite(path, colors[:, :, 0].astype("uint16") * 257)
    np.testing.assert_array_equal(read_image(path)[:, :, 1], colors[:, :, 0])


def test_exif_orientation(colors, tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # rotate by 90 degrees clockwise
    path = tmp_path / "image.jpg"
    Image.fromarray(colors).save(path, exif=exif, quality=95, subsampling=0)
    actual = read_image(path).astype(int)
    np.testing.assert_allclose(actual, np.rot90(colors, -1), atol=12)


HUGE = b"P6 9999999 9999999 255\n" + bytes(99)


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n", b"<svg></svg>", HUGE])
def test_errors_name_the_file(content, tmp_path):
    (tmp_path / "image.jpg").write_bytes(content)
    with pytest.raises(InputError, match=r"image\.jpg: cannot be read as an image"):
        read_image(tmp_path / "image.jpg")
    if content:
        with pytest.raises(InputError, match="image: cannot be read as an image"):
            decode_image(content)


def test_oversized_images_are_rejected(tmp_path):
    (tmp_path / "image.ppm").write_bytes(b"P6 60000 60000 255\n")
    with pytest.raises(InputError, match=r"image\.ppm: cannot be read as an image \(Image size"):
        read_image(tmp_path / "image.ppm")
    with pytest.raises(InputError, match="Image size"):
        decode_image((tmp_path / "image.ppm").read_bytes())


def test_float_images_are_rejected(tmp_path):
    Image.fromarray(np.ones([4, 4], "float32")).save(tmp_path / "image.tif")
    with pytest.raises(InputError, match="not an image of 8 or 16-bit"):
        read_image(tmp_path / "image.tif")

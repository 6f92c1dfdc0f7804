"""Image files of any format, against Pillow."""

import errno
import re
import struct
from io import BytesIO
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from paddleseg_segformer.data.image_io import decode_image, read_image, read_label, read_pair
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


@pytest.mark.parametrize("ending", ["webp", "tif", "gif", "ppm", "jp2"])
def test_opencv_does_not_read_other_formats(ending, colors, tmp_path, monkeypatch):
    """Its bundled libraries are old. A lossless format has the same values."""
    path = str(tmp_path / f"image.{ending}")
    options = {"webp": {"lossless": True}, "jp2": {"irreversible": False}}.get(ending, {})
    Image.fromarray(colors).save(path, **options)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("read by OpenCV"))
    expected = Image.open(path).convert("RGB")  # GIF has 256 colors
    for actual in (read_image(path), read_pair(path, None)[0]):
        np.testing.assert_array_equal(actual, np.asarray(expected))
    gray = np.asarray(expected.convert("L")).astype(int)
    np.testing.assert_allclose(read_pair(path, None, channels=1)[0], gray, atol=1)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize("read", [read_image, read_label, lambda x: read_pair(x, None)])
def test_postscript_is_not_run(read, tmp_path, monkeypatch):
    """Pillow would call Ghostscript, whatever the file's name."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("was run"))
    (tmp_path / "a.png").write_bytes(POSTSCRIPT)
    with pytest.raises(InputError, match=r"a\.png: cannot be read as an image"):
        read(str(tmp_path / "a.png"))


def test_the_reason_of_an_unreadable_file(colors, tmp_path, monkeypatch):
    """Not that it is damaged."""
    Image.fromarray(colors).save(tmp_path / "a.png")
    error = PermissionError(errno.EACCES, "Permission denied", "a.png")
    monkeypatch.setattr(Path, "read_bytes", mock.Mock(side_effect=error))
    for read in (read_image, lambda x: read_pair(x, None)):
        with pytest.raises(InputError, match=r"a\.png: cannot be read as an image .*Permission"):
            read(str(tmp_path / "a.png"))


def test_an_unknown_format_is_an_error_in_training(tmp_path):
    (tmp_path / "image.tif").write_bytes(b"text")
    expected = f"{tmp_path}/image.tif: cannot be read as an image (cannot identify image file)."
    with pytest.raises(InputError, match=f"^{re.escape(expected)}$"):
        read_pair(str(tmp_path / "image.tif"), None)


def test_cmyk_jpeg(colors, tmp_path):
    Image.fromarray(colors).convert("CMYK").save(tmp_path / "image.jpg", quality=95)
    actual = read_image(tmp_path / "image.jpg").astype(int)
    assert np.abs(actual - colors).mean() < 8


@pytest.mark.parametrize("ending, turns", [("jpg", -1), ("tif", -1), ("webp", 0)])
def test_exif_orientation(ending, turns, colors, tmp_path):
    """In WebP, it is ignored, as by browsers."""
    exif = Image.Exif()
    exif[274] = 6  # rotate by 90 degrees clockwise
    options = {"jpg": {"quality": 95, "subsampling": 0}, "webp": {"lossless": True}}
    path = tmp_path / f"image.{ending}"
    Image.fromarray(colors).save(path, exif=exif, **options.get(ending, {}))
    actual = read_image(path).astype(int)
    np.testing.assert_allclose(actual, np.rot90(colors, turns), atol=12)


def test_a_thumbnail_does_not_hide_that_a_jpeg_is_truncated(colors):
    """The thumbnail in the file's header has an end-of-image marker, too."""
    image, thumbnail = BytesIO(), BytesIO()
    Image.fromarray(colors).save(image, "jpeg")
    Image.fromarray(colors[::8, ::8]).save(thumbnail, "jpeg")
    header = b"\xff\xe1" + struct.pack(">H", 2 + len(thumbnail.getvalue())) + thumbnail.getvalue()
    data = image.getvalue()[:2] + header + image.getvalue()[2:]
    np.testing.assert_array_equal(decode_image(data), decode_image(image.getvalue()))
    with pytest.raises(InputError, match="the file is truncated"):
        decode_image(data[:-20])


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    red, blue = (Image.new("RGB", (20, 10), color) for color in ("red", "blue"))
    red.save(tmp_path / "image.gif", save_all=True, append_images=[blue])
    assert (read_image(tmp_path / "image.gif") == [255, 0, 0]).all()


INDICES = np.arange(24, dtype="uint8").reshape(4, 6)
LABELS = {
    "8 bits": (Image.fromarray(INDICES), INDICES),
    "palette": (Image.fromarray(INDICES, mode="P"), INDICES),
    "16 bits": (Image.fromarray(INDICES.astype("uint16")), INDICES),
    "1 bit": (Image.fromarray(INDICES % 3 == 0), INDICES % 3 == 0),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_are_the_stored_values(case, tmp_path):
    """Of a palette image, the indices and not the colors."""
    label, expected = LABELS[case]
    if label.mode == "P":
        label.putpalette(np.random.default_rng(0).integers(0, 256, 768, "uint8").tobytes())
    label.save(tmp_path / "label.png")
    cv2.imwrite(str(tmp_path / "image.png"), np.zeros([4, 6, 3], "uint8"))
    _, found = read_pair(str(tmp_path / "image.png"), str(tmp_path / "label.png"))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def test_training_images_are_rotated_by_exif_too(colors, tmp_path):
    """Their label maps are those of the displayed image."""
    exif = Image.Exif()
    exif[274] = 6
    image, label = tmp_path / "image.jpg", tmp_path / "label.png"
    Image.fromarray(colors).save(image, exif=exif, quality=95)
    cv2.imwrite(str(label), np.rot90(colors[:, :, 0], -1))
    found = read_pair(str(image), str(label))
    np.testing.assert_array_equal(found[0], read_image(image))
    np.testing.assert_array_equal(found[1], np.rot90(colors[:, :, 0], -1))
    gray, _ = read_pair(str(image), None, channels=1)
    luma = np.rot90(colors, -1) @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(gray, luma, atol=12)


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
    with pytest.raises(InputError, match=r"image\.ppm: cannot be read as an image \(60000x60000"):
        read_image(tmp_path / "image.ppm")
    with pytest.raises(InputError, match="60000x60000 pixels of 3 bands take"):
        decode_image((tmp_path / "image.ppm").read_bytes())

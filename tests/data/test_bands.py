"""Images of more than 8 bits or of any number of bands: files against the arrays in them."""

import io
import sys
import warnings

import cv2
import numpy as np
import pytest
from PIL import Image

from paddleseg_segformer.data.image_io import decode_image, read_image, read_pair, to_8bit_scale
from paddleseg_segformer.data.raster_io import read_size
from paddleseg_segformer.errors import InputError

RNG = np.random.default_rng(0)
VALUES = RNG.integers(0, 4000, [20, 30, 4]).astype("uint16")
SCALED = (VALUES.astype("float64") / 65535 * 255).astype("float32")


def write_tiff(path, values, **options):
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    values = np.atleast_3d(values)
    height, width, count = values.shape
    size = {"height": height, "width": width, "count": count, "dtype": values.dtype}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="GTiff", **size, **options) as file:
            file.write(values.transpose(2, 0, 1))


def write_tiles(path, values):
    write_tiff(path, values, tiled=True, blockxsize=16, blockysize=16, compress="deflate")


def write_pages(path, values):
    first, *others = (Image.fromarray(band) for band in np.atleast_3d(values).transpose(2, 0, 1))
    first.save(path, save_all=True, append_images=others)


def write_png(path, values):
    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}
    cv2.imwrite(str(path), values[:, :, order[values.shape[2]]] if values.ndim == 3 else values)


def write_npy(path, values):
    np.save(path, values)


def write_rgb_tiff(path, values):
    """As color management and cameras do; Pillow would read 8 of the bits."""
    write_tiff(path, values, photometric="RGB" if values.ndim == 3 else "MINISBLACK")


WRITERS = [(write_png, ".png"), (write_tiff, ".tif"), (write_tiles, ".tif"), (write_pages, ".tif")]
WRITERS += [(write_npy, ".npy"), (write_rgb_tiff, ".tif")]


def written(write, ending, values, tmp_path):
    if write is write_pages:
        pytest.importorskip("rasterio", reason="rasterio is not installed")
    path = tmp_path / f"image{ending}"
    write(path, values)
    return path


@pytest.mark.parametrize("write, ending", WRITERS)
@pytest.mark.parametrize("bands", [1, 3, 4])
def test_16_bits_are_fractions_of_65535(write, ending, bands, tmp_path):
    values = VALUES[:, :, 0] if bands == 1 else VALUES[:, :, :bands]
    path = written(write, ending, values, tmp_path)
    expected = SCALED[:, :, 0] if bands == 1 else SCALED[:, :, :bands]
    read = [read_image(path, bands), decode_image(path.read_bytes(), channels=bands)]
    for image in (*read, read_pair(str(path), None, bands)[0]):
        assert image.dtype == np.float32
        np.testing.assert_array_equal(image, expected)
    if bands == 1:
        np.testing.assert_array_equal(read_image(path), expected[:, :, None].repeat(3, axis=2))
    if bands == 3:
        gray = expected @ [0.299, 0.587, 0.114]
        np.testing.assert_allclose(read_image(path, 1), gray, rtol=1e-5)


@pytest.mark.parametrize("write, ending", WRITERS[1:3] + WRITERS[4:5])
@pytest.mark.parametrize("dtype", ["int16", "int32", "uint32", "float32", "float64"])
def test_other_types(write, ending, dtype, tmp_path):
    values = (100 * RNG.normal(size=[20, 30, 6])).astype("int64")
    values = (abs(values) if dtype == "uint32" else values).astype(dtype)
    path = written(write, ending, values, tmp_path)
    unit = 32767 if dtype == "int16" else 1
    expected = (values.astype("float64") / unit * 255).astype("float32")
    np.testing.assert_array_equal(read_image(path, 6), expected)
    write(path, values[:, :, :1])
    np.testing.assert_array_equal(read_image(path, 1), expected[:, :, 0])


@pytest.mark.parametrize("dtype", [">u2", "<u2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_any_byte_order_and_layout(dtype, order, tmp_path):
    np.save(tmp_path / "image.npy", np.asarray(VALUES.astype(dtype), order=order))
    np.testing.assert_array_equal(read_image(tmp_path / "image.npy", 4), SCALED)


def test_8_bits_stay_8_bits(tmp_path):
    values = VALUES.astype("uint8")
    for write, ending in WRITERS[:1] + WRITERS[4:5]:
        path = written(write, ending, values, tmp_path)
        image = read_image(path, 4)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, values)


def test_the_ends_of_the_scale():
    assert to_8bit_scale(np.array([0, 257, 65535], "uint16")).tolist() == [0, 1, 255]
    assert to_8bit_scale(np.array([-32767, 32767], "int16")).tolist() == [-255, 255]
    assert to_8bit_scale(np.array([0.5, -2])).tolist() == [127.5, -510]
    assert to_8bit_scale(np.array([True, False])).tolist() == [255, 0]


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_alpha_of_a_png_is_dropped_for_rgb(dtype, tmp_path):
    write_png(tmp_path / "image.png", VALUES.astype(dtype))
    four, three = (read_image(tmp_path / "image.png", n) for n in (4, 3))
    np.testing.assert_array_equal(three, four[:, :, :3])


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_only_a_declared_alpha_of_a_tiff_is_dropped(dtype, tmp_path):
    path, values = tmp_path / "image.tif", VALUES.astype(dtype)
    write_tiff(path, values, photometric="RGB", ALPHA="YES")
    np.testing.assert_array_equal(read_image(path, 4), to_8bit_scale(values))
    np.testing.assert_array_equal(read_image(path, 3), to_8bit_scale(values)[:, :, :3])
    write_tiff(path, values, photometric="RGB", ALPHA="UNSPECIFIED")
    np.testing.assert_array_equal(read_image(path, 4), to_8bit_scale(values))
    with pytest.raises(InputError, match="has 4 bands"):
        read_image(path, 3)


def test_a_fourth_band_of_unknown_meaning_is_no_alpha(tmp_path):
    """Without the tag 338, as OpenCV writes four bands."""
    values, file = VALUES.astype("uint8"), io.BytesIO()
    Image.fromarray(values).save(file, "TIFF")
    data = file.getvalue()
    np.testing.assert_array_equal(decode_image(data), values[:, :, :3])
    assert data.count(b"\x52\1\3\0") == 1
    data = data.replace(b"\x52\1\3\0", b"\x54\1\3\0")
    np.testing.assert_array_equal(decode_image(data, channels=4), values)
    with pytest.raises(InputError, match="has 4 bands"):
        decode_image(data)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("ending", [".npy", ".tif"])
def test_another_number_of_bands_is_an_error(channels, ending, tmp_path):
    path = tmp_path / f"image{ending}"
    (write_npy if ending == ".npy" else write_tiff)(path, VALUES)
    problem = rf"image{ending}: has 4 bands \(30x20 pixels\), but img_channels is {channels}; set "
    problem += "img_channels: 4 in train_dataset and val_dataset to train a model for such images"
    with pytest.raises(InputError, match=problem):
        read_image(path, channels)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_no_numbers_are_an_error(value, tmp_path):
    np.save(tmp_path / "image.npy", np.array([[0, value]]))
    with pytest.raises(InputError, match=r"image\.npy: has NaN or infinite values; fill them\.$"):
        read_image(tmp_path / "image.npy", 1)


def npy_header(shape, dtype="<u2"):
    file = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


@pytest.mark.parametrize(
    "data, problem",
    [
        (npy_header((1 << 20, 1 << 20)), "1048576x1048576 pixels of 3 bands take "),
        (npy_header((10, 10)), "buffer is smaller than requested size"),
        (npy_header((10, 10, 3, 2)), "is not an array"),
        (npy_header((0, 10)), "is not an array"),
        (npy_header((4, 4), "<c8") + bytes(128), r"complex64 \[4, 4\] is not an array"),
        (npy_header((4, 4), "|O") + bytes(128), "object"),
        (b"\x93NUMPY\x01\x00\x10", "EOF"),
    ],
)
def test_damaged_files_are_errors_and_take_no_memory(data, problem):
    with pytest.raises(InputError, match=rf"^image: cannot be read as an image \(.*{problem}"):
        decode_image(data)


def test_no_tiff():
    with pytest.raises(InputError, match=r"^image: cannot be read as an image \("):
        decode_image(b"II*\0" + bytes(99))


def test_a_small_tiff_that_claims_a_huge_size_is_an_error(tmp_path):
    path = tmp_path / "image.tif"
    write_tiff(path, VALUES, SPARSE_OK=True)
    data = bytearray(path.read_bytes())
    for tag, value in ((256, 100_000), (257, 100_000)):  # width and height are 4-byte entries
        at = data.index(tag.to_bytes(2, "little"), 8)
        data[at + 2 : at + 12] = b"\4\0\1\0\0\0" + value.to_bytes(4, "little")
    assert read_size(bytes(data)) == (100_000, 100_000, 4)
    with pytest.raises(InputError, match="100000x100000 pixels of 4 bands take "):
        decode_image(bytes(data), channels=4)


@pytest.mark.parametrize("tenth", range(1, 10))
def test_truncated_tiffs_are_errors(tenth, tmp_path):
    write_tiles(tmp_path / "image.tif", VALUES)
    data = (tmp_path / "image.tif").read_bytes()
    with pytest.raises(InputError, match=r"^image: cannot be read as an image"):
        decode_image(data[: len(data) * tenth // 10], channels=4)


def test_pages_of_different_sizes_are_an_error(tmp_path):
    pytest.importorskip("rasterio", reason="rasterio is not installed")
    pages = [Image.fromarray(VALUES[:, : 30 - i, i]) for i in range(2)]
    pages[0].save(tmp_path / "image.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match="its pages have different sizes"):
        read_image(tmp_path / "image.tif", 2)


def test_a_reduced_page_is_no_band(tmp_path, monkeypatch):
    """As in cloud-optimized GeoTIFFs and scans with a thumbnail; Pillow reads the first page."""
    monkeypatch.setitem(sys.modules, "rasterio", None)
    values = VALUES[:, :, :3].astype("uint8")
    small = Image.fromarray(values[::2, ::2])
    small.encoderinfo = {"tiffinfo": {254: 1}}
    Image.fromarray(values).save(tmp_path / "image.tif", save_all=True, append_images=[small])
    np.testing.assert_array_equal(read_image(tmp_path / "image.tif"), values)


def test_without_rasterio_its_files_are_an_error(tmp_path, monkeypatch):
    write_tiff(tmp_path / "image.tif", VALUES)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    needs = r"this TIFF needs rasterio: pip install 'paddleseg-segformer\[raster\]'\)\.$"
    with pytest.raises(InputError, match=needs):
        read_image(tmp_path / "image.tif", 4)
    gray = Image.fromarray(VALUES[:, :, 0])
    gray.save(tmp_path / "gray.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "gray.tif", 1), SCALED[:, :, 0])

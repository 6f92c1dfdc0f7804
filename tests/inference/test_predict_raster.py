"""GeoTIFFs: coordinates, pixels without data, and rasters that are segmented window by window."""

import logging
import re
import resource
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from small_models import SMALLEST, save, small_model, smallest_model

from paddleseg_segformer import MixVisionTransformer, Normalize
from paddleseg_segformer.data.image_io import read_image
from paddleseg_segformer.errors import InputError, RunError
from paddleseg_segformer.inference import Predictor, Segmenter, TestConfig, predict, predict_raster
from paddleseg_segformer.inference import segmenter as segmenter_module
from paddleseg_segformer.inference.backends import GraphLogitsModel, GraphSegmenter

rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")

WINDOWS = {"is_slide": True, "crop_size": (64, 64), "stride": (48, 48), "device": "cpu"}
TRANSFORM = rasterio.transform.from_origin(500_000, 5_000_000, 0.5, 0.5)
COORDINATES = {"crs": "EPSG:32633", "transform": TRANSFORM}
SIZE = (260, 300)
RPC_POLYNOMIALS = ("line_num", "line_den", "samp_num", "samp_den")
RPC_AXES = ("line", "samp", "lat", "long", "height")
BLOCK = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save(smallest_model(), tmp_path_factory.mktemp("model") / "model.pdparams")


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, [*SIZE, 3], dtype="uint8")


@pytest.fixture
def large(monkeypatch):
    """Every raster is segmented window by window, in strips of 128 pixels and bands of 64."""
    monkeypatch.setattr(predict_raster, "MAX_VALUES", 0)
    monkeypatch.setattr(predict_raster, "STRIP_WIDTH", 128)
    monkeypatch.setattr(predict_raster, "PREVIEW_SIZE", 100)
    monkeypatch.setattr(segmenter_module, "BAND_HEIGHT", 64)


def write(path, image, **options):
    height, width, bands = image.shape
    options = {"dtype": image.dtype, "width": width, "height": height, "count": bands, **options}
    with rasterio.open(path, "w", driver="GTiff", **{**BLOCK, **options}) as file:
        file.write(image.transpose(2, 0, 1))
    return path


def read(path):
    with rasterio.open(path) as file:
        return file.read(1), file.crs, file.transform


@pytest.mark.parametrize("by_window", [False, True])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_bands_of_any_type(dtype, by_window, tmp_path, request):
    """Four bands of reflectance; in floats, NaN means no data."""
    if by_window:
        request.getfixturevalue("large")
    backbone = partial(MixVisionTransformer, in_channels=4, **SMALLEST)
    checkpoint = save(small_model(backbone=backbone), tmp_path / "model.pdparams")
    image = np.random.default_rng(0).integers(0, 60_000, [*SIZE, 4], dtype="uint16")
    options, valid = COORDINATES, holes()
    if dtype == "float32":
        image = np.where(valid[:, :, None], image.astype("float32") / 60_000, np.nan)
        options = {**COORDINATES, "nodata": np.nan}
    path = write(tmp_path / "a.tif", image.astype(dtype), **options)
    assert predict(checkpoint, path, tmp_path / "out", **WINDOWS) == (1, [])
    labels, _, _ = read(tmp_path / "out/label_map/a.tif")
    expected = Predictor(checkpoint, **WINDOWS)(np.nan_to_num(image)).label_map
    assert len(np.unique(expected)) > 1
    if dtype == "float32":
        expected = np.where(valid, expected, 255)
    np.testing.assert_array_equal(labels, expected)
    if dtype == "float32":  # without a nodata value
        write(path, image, **COORDINATES)
        count, (problem,) = predict(checkpoint, path, tmp_path / "out", **WINDOWS)
        assert count == 0 and "a.tif: has NaN or infinite values" in problem


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("flips", [{}, {"aug_eval": True, "flip_vertical": True}])
def test_the_label_map_is_that_of_the_whole_image(flips, checkpoint, image, large, tmp_path):
    """Windows that do not divide the strips, and bands that divide the windows."""
    path = write(tmp_path / "city.tif", image, **COORDINATES)
    options = {**WINDOWS, **flips}
    assert predict(checkpoint, path, tmp_path / "out", **options) == (1, [])
    labels, crs, transform = read(tmp_path / "out/label_map/city.tif")
    expected = Predictor(checkpoint, **options)(image).label_map
    assert len(np.unique(expected)) > 2
    np.testing.assert_array_equal(labels, expected)
    assert crs == "EPSG:32633" and transform == TRANSFORM
    kinds = ("added_prediction", "pseudo_color_prediction")
    assert files(tmp_path / "out") == [
        "added_prediction/city.png",
        "label_map/city.tif",
        "pseudo_color_prediction/city.png",
    ]
    for kind in kinds:
        assert Image.open(tmp_path / f"out/{kind}/city.png").size == (100, 87)


def test_a_small_geotiff_keeps_its_coordinates(checkpoint, image, tmp_path):
    """The color table is the palette; the classes' names are tags. Other TIFFs give a PNG."""
    write(tmp_path / "city.tif", image, **COORDINATES)
    Image.fromarray(image).save(tmp_path / "photo.tif")
    assert predict(checkpoint, tmp_path, tmp_path / "out", **WINDOWS) == (2, [])
    expected = Predictor(checkpoint, **WINDOWS)(image)
    path = tmp_path / "out/label_map/city.tif"
    labels, crs, transform = read(path)
    np.testing.assert_array_equal(labels, expected.label_map)
    np.testing.assert_array_equal(Image.open(tmp_path / "out/label_map/photo.png"), labels)
    assert crs == "EPSG:32633" and transform == TRANSFORM
    with rasterio.open(path) as file:
        assert file.nodata == 255 and file.dtypes == ("uint8",)
        assert [file.tags()[f"class_{i}"] for i in range(5)] == expected.classes
        colors = [file.colormap(1)[i] for i in range(5)]
    assert colors == [(*color, 255) for color in expected.palette[:5].tolist()]
    overlay = np.asarray(Image.open(tmp_path / "out/added_prediction/city.png"))
    np.testing.assert_array_equal(overlay, expected.overlay())


def test_ground_control_points_are_kept(checkpoint, image, tmp_path):
    corners = [(0, 0), (0, 300), (260, 0), (260, 300)]
    point = rasterio.control.GroundControlPoint
    points = [point(row, col, 9 + col / 1e4, 48 - row / 1e4) for row, col in corners]
    path = write(tmp_path / "a.tif", image, gcps=points, crs="EPSG:4326")
    predict(checkpoint, path, tmp_path / "out", **WINDOWS)
    with rasterio.open(tmp_path / "out/label_map/a.tif") as file:
        found, crs = file.gcps
    assert crs == "EPSG:4326"
    assert [(p.row, p.col, p.x, p.y) for p in found] == [(p.row, p.col, p.x, p.y) for p in points]


def test_rational_polynomials_are_kept(image, tmp_path):
    """Of satellite images that are not rectified."""
    coefficients = {f"{x}_coeff": [i / 8] * 20 for i, x in enumerate(RPC_POLYNOMIALS)}
    numbers = {f"{x}_{y}": i for i, x in enumerate(RPC_AXES) for y in ("off", "scale")}
    rpcs = rasterio.rpc.RPC(**coefficients, **numbers, err_bias=1, err_rand=2)
    raster = predict_raster.open_raster(write(tmp_path / "a.tif", image, rpcs=rpcs), 3)
    classes = SimpleNamespace(classes=["all"], palette=np.zeros([1, 3], "uint8"))
    with predict_raster.new_label_map(tmp_path / "labels.tif", raster, classes) as save_labels:
        save_labels(image[:, :, 0])
    raster.close()
    with rasterio.open(tmp_path / "labels.tif") as file:
        assert file.rpcs.to_dict() == rpcs.to_dict() and not file.crs


def holes():
    """A mask of data: windows and pixels of windows without any."""
    valid = np.ones(SIZE, bool)
    valid[:150, :130] = False
    valid[200:210, 250:] = False
    return valid


@pytest.mark.parametrize("kind", ["nodata", "alpha", "mask"])
@pytest.mark.parametrize("by_window", [False, True])
def test_pixels_without_data(kind, by_window, checkpoint, image, tmp_path, request):
    """Their label is 255; the others' that of an image with 0 there."""
    if by_window:
        request.getfixturevalue("large")
    image, valid = np.maximum(image, 1), holes()
    zeroed = image * valid[:, :, None]
    path = tmp_path / "a.tif"
    if kind == "nodata":
        write(path, np.where(valid[:, :, None], image, 7), nodata=7, **COORDINATES)
        zeroed = np.where((image == 7).all(axis=2, keepdims=True), 0, zeroed)
        valid = valid & ~(image == 7).all(axis=2)
    elif kind == "alpha":
        alpha = np.where(valid, 255, 0).astype("uint8")
        write(path, np.dstack([image, alpha]), **COORDINATES)
    else:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            write(path, image, **COORDINATES)
            with rasterio.open(path, "r+") as file:
                file.write_mask(valid)
    assert predict(checkpoint, path, tmp_path / "out", **WINDOWS) == (1, [])
    labels, _, _ = read(tmp_path / "out/label_map/a.tif")
    expected = Predictor(checkpoint, **WINDOWS)(zeroed).label_map
    np.testing.assert_array_equal(labels, np.where(valid, expected, 255))
    for folder in () if by_window else ("added_prediction", "pseudo_color_prediction"):
        picture = np.asarray(Image.open(tmp_path / f"out/{folder}/a.png"))
        assert (picture[~valid] == 0).all() and (picture[valid] > 0).any()


def test_windows_without_data_are_skipped(checkpoint, image, large, tmp_path, monkeypatch):
    runs, decode = [], segmenter_module.SegFormer.decode
    monkeypatch.setattr(
        segmenter_module.SegFormer, "decode", lambda *a: runs.append(a) or decode(*a)
    )
    image[:, 64:] = 0
    path = write(tmp_path / "a.tif", image, nodata=0, **COORDINATES)
    predict(checkpoint, path, tmp_path / "out", **WINDOWS)
    labels, _, _ = read(tmp_path / "out/label_map/a.tif")
    assert (labels[:, 64:] == 255).all() and (labels[:, :64] < 5).all()
    assert len(runs) == 2 * 6  # of 6 rows of windows, the first two columns
    image[:] = 0
    write(path, image, nodata=0, **COORDINATES)
    predict(checkpoint, path, tmp_path / "out", **WINDOWS)
    assert (read(tmp_path / "out/label_map/a.tif")[0] == 255).all() and len(runs) == 2 * 6


def test_a_color_table_is_applied(checkpoint, image, tmp_path):
    """As it is to TIFFs without coordinates; gray is that of the colors, too."""
    indices = image[:, :, :1]
    colors = {i: (i, 255 - i, i // 2, 255) for i in range(256)}
    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", dtype="uint8", width=300, height=260, count=1, **COORDINATES
    ) as file:
        file.write_colormap(1, colors)
        file.write(indices[:, :, 0], 1)
    predict(checkpoint, path, tmp_path / "out", **WINDOWS)
    table = np.array([colors[i][:3] for i in range(256)], "uint8")
    expected = Predictor(checkpoint, **WINDOWS)(table[indices[:, :, 0]]).label_map
    np.testing.assert_array_equal(read(tmp_path / "out/label_map/a.tif")[0], expected)
    for channels in (1, 3):
        raster = predict_raster.open_raster(path, channels)
        np.testing.assert_array_equal(raster.read()[0], read_image(path, channels))
        raster.close()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_less_than_8_bits_are_read_as_in_training(bits, image, tmp_path):
    path = write(tmp_path / "a.tif", image[:, :, :1] % 2**bits, nbits=bits, **COORDINATES)
    raster = predict_raster.open_raster(path, 3)
    np.testing.assert_array_equal(raster.read()[0], read_image(path))
    raster.close()


def test_an_interruption_leaves_the_earlier_files(checkpoint, image, large, tmp_path, monkeypatch):
    """The label map has its name only once it is whole; so after a damaged block, too."""
    path = write(tmp_path / "a.tif", image, **COORDINATES)
    earlier = tmp_path / "out/label_map/a.tif"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("whole")
    calls, read_mask = iter(range(10)), predict_raster.Raster.valid

    def interrupt(self, window=None, size=None):
        if next(calls) == 9:
            assert len(files(tmp_path / "out")) == 2 and earlier.read_text() == "whole"
            raise KeyboardInterrupt
        return read_mask(self, window, size)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(predict_raster.Raster, "valid", interrupt)
        predict(checkpoint, path, tmp_path / "out", **WINDOWS)
    assert files(tmp_path / "out") == ["label_map/a.tif"] and earlier.read_text() == "whole"
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    path.write_bytes(data)
    count, problems = predict(checkpoint, path, tmp_path / "out", **WINDOWS)
    assert count == 0 and f"{path}: is damaged or truncated (" in problems[0]
    assert files(tmp_path / "out") == ["label_map/a.tif"] and earlier.read_text() == "whole"


def test_a_full_disk(checkpoint, image, large, tmp_path):
    """Simulated by a limit of the file size."""
    path = write(tmp_path / "a.tif", image, **COORDINATES)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))
    try:
        with pytest.raises(RunError, match=r"--save_dir: .*a\.tif cannot be written"):
            predict(checkpoint, path, tmp_path / "out", **WINDOWS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(tmp_path / "out") == []


def test_a_lost_block_is_noticed(checkpoint, image, tmp_path, monkeypatch):
    """GDAL writes some blocks when the file is closed, where rasterio raises no error."""
    path, original = write(tmp_path / "a.tif", image, **COORDINATES), predict_raster._open

    def lose_block(path, mode="r", **options):
        if "partial" in path.name and mode == "r":
            with rasterio.open(path, "r+") as file:
                file.write(np.full([9, 9], 255, "uint8"), 1, window=((0, 9), (0, 9)))
        return original(path, mode, **options)

    monkeypatch.setattr(predict_raster, "_open", lose_block)
    with pytest.raises(RunError, match=r"--save_dir: .*a\.tif cannot be written; is the disk full"):
        predict(checkpoint, path, tmp_path / "out", **WINDOWS)
    assert files(tmp_path / "out") == []


def test_rasters_that_cannot_be_segmented_by_windows(checkpoint, image, large, tmp_path):
    path = write(tmp_path / "a.tif", image, **COORDINATES)
    for options, expected in (
        ({"probabilities": True}, r"a\.tif: is too large for --probabilities; "),
        ({"aug_eval": True, "scales": [0.5, 1]}, r"a\.tif: .*own resolution, without Rescale; "),
    ):
        count, (problem,) = predict(checkpoint, path, tmp_path / "out", **WINDOWS, **options)
        assert count == 0 and re.search(expected, problem), problem
    write(path, np.dstack([image, image]), **COORDINATES)
    count, (problem,) = predict(checkpoint, path, tmp_path / "out", **WINDOWS)
    assert count == 0 and "a.tif: has 6 bands" in problem and "img_channels is 3" in problem
    write(path, image.astype("complex64"), **COORDINATES)
    count, (problem,) = predict(checkpoint, path, tmp_path / "out", **WINDOWS)
    assert count == 0 and "a.tif: has values of type complex64" in problem
    assert files(tmp_path / "out") == []


def test_a_damaged_file_is_one_sentence(checkpoint, tmp_path, caplog):
    """Not also a line in the log; rasterio logs the errors that it raises."""
    (tmp_path / "a.tif").write_bytes(b"II*\0damaged")
    logging.getLogger("rasterio").setLevel(logging.NOTSET)
    with caplog.at_level("INFO"):
        count, (problem,) = predict(checkpoint, tmp_path / "a.tif", tmp_path / "out", **WINDOWS)
    assert count == 0 and problem.startswith(f"{tmp_path}/a.tif: cannot be read as an image (")
    assert not [record for record in caplog.records if record.name.startswith("rasterio")]


def test_exported_graphs(image, large, tmp_path, caplog):
    """Of a fixed size: windows of this size that overlap by a quarter. Of label maps: refused."""
    raster = predict_raster.open_raster(write(tmp_path / "a.tif", image, **COORDINATES), 3)
    model = GraphLogitsModel(lambda x: x * x[:, :, ::-1, :1], (64, 80))
    normalize = [Normalize([0.5] * 3, [0.5] * 3)]
    segmenter = Segmenter(model, normalize, TestConfig())
    palette = np.arange(9, dtype="uint8").reshape(3, 3)
    predictor = SimpleNamespace(segmenter=segmenter, classes=["a", "b", "c"], palette=palette)
    path = tmp_path / "labels.tif"
    with caplog.at_level("INFO"):
        predict_raster.segment_large(predictor, raster, path)
    assert "sliding window 80x64, stride 60x48" in caplog.text
    whole = Segmenter(model, normalize, TestConfig(crop_size=(80, 64), stride=(60, 48)))
    (expected,) = whole([whole.augmented_inputs(image)])
    np.testing.assert_array_equal(read(path)[0], expected.numpy())
    predictor.segmenter = GraphSegmenter(None, None, normalize)
    with pytest.raises(InputError, match=r"a\.tif: .* export the graph with --output_op none"):
        predict_raster.segment_large(predictor, raster, path)
    raster.close()

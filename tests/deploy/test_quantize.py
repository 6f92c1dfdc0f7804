"""Int8 graphs: calibrated on images, and verified against the float graph on others."""

import shutil
import sys

import cv2
import numpy as np
import pytest
from optional import skip_without_quantizer
from small_models import save, smallest_model

from paddleseg_segformer.cli import export as command
from paddleseg_segformer.data.scenes import draw_scene
from paddleseg_segformer.deploy import export
from paddleseg_segformer.deploy.quantize import (
    MAX_IMAGES,
    check_quantizer,
    compare,
    find_calibration_images,
    quantize,
)
from paddleseg_segformer.errors import InputError, RunError
from paddleseg_segformer.inference import Predictor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, and eight images of two sizes."""
    folder = tmp_path_factory.mktemp("model")
    save(smallest_model(), folder / "model.pdparams")
    (folder / "images").mkdir()
    for i in range(8):
        scene = draw_scene(np.random.default_rng(i), (128, 96) if i % 2 else (96, 96))[0]
        cv2.imwrite(str(folder / f"images/{i}.png"), scene)
    return folder


def network_input(path):
    image = cv2.imread(str(path))[:, :, ::-1] / 255
    image = (image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None], "float32")


@pytest.fixture(scope="module")
def float_graph(folder, tmp_path_factory):
    skip_without_quantizer()
    target = tmp_path_factory.mktemp("float")
    export(folder / "model.pdparams", target, folder / "images/0.png", format="onnx")
    return target


def quantized(float_graph, target, images):
    """Copy the float graph to ``target``, quantize it there, and return its scores."""
    shutil.copytree(float_graph, target)
    split = find_calibration_images(images)
    return quantize(target / "model.onnx", *split, network_input, list("abcde"), min_agreement=0)


@pytest.fixture(scope="module")
def int8_graph(float_graph, folder, tmp_path_factory):
    """The folder of the int8 graph, and its scores."""
    target = tmp_path_factory.mktemp("int8") / "graph"
    return target, quantized(float_graph, target, folder / "images")


@pytest.mark.integration
def test_weights_are_int8(float_graph, int8_graph):
    """Of all convolutions and matrix products but the first and the depthwise convolutions."""
    import onnx

    before, after = (onnx.load(x / "model.onnx") for x in (float_graph, int8_graph[0]))
    assert after.metadata_props == before.metadata_props
    tensors = {tensor.name: tensor for tensor in after.graph.initializer}
    sources = {node.output[0]: node.input[0] for node in after.graph.node if "Dequ" in node.op_type}
    counts = {"int8": 0, "float": 0}
    for node in (node for node in after.graph.node if node.op_type in ("Conv", "MatMul")):
        names = [sources.get(name, name) for name in node.input[:2]]
        weights = [onnx.numpy_helper.to_array(tensors[name]) for name in names if name in tensors]
        if not weights:
            assert node.op_type == "MatMul"  # of queries, keys and values
        elif weights[0].dtype == "int8":
            assert abs(weights[0].astype(int)).max() in (63, 64)  # 7 bits
            counts["int8"] += 1
        else:
            is_first = node.input[0] == after.graph.input[0].name
            assert is_first or {a.name: a.i for a in node.attribute}["group"] > 1
            counts["float"] += 1
    # Per stage: patch embedding, sequence reduction (but in the last), q, kv, attention's output,
    # two layers of the Mix-FFN, and one of the head; and the classifier.
    assert counts == {"int8": 4 * 8 - 1 + 1 - 1, "float": 1 + 4}


@pytest.mark.integration
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_predictions_of_an_int8_graph(backend, float_graph, int8_graph, folder):
    """They differ little from the float graph's, and as little as was reported."""
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    expected, found = (
        np.concatenate([predictor(folder / f"images/{i}.png").label_map.ravel() for i in (0, 4)])
        for predictor in (Predictor(x, backend=backend) for x in (float_graph, int8_graph[0]))
    )
    tolerance = 1e-6 if backend == "onnxruntime" else 0.01
    assert (found == expected).mean() == pytest.approx(int8_graph[1].accuracy, abs=tolerance)
    assert 0.95 < (found == expected).mean() < 1


@pytest.mark.integration
def test_export_of_another_output(float_graph, folder, tmp_path):
    """Logits, with the normalization and a fixed size in the graph."""
    options = {"output_op": "none", "with_normalize": True, "input_shape": (1, 3, 96, 128)}
    options |= {"format": "onnx", "int8": True, "min_agreement": 0.9}
    agreement = export(folder / "model.pdparams", tmp_path, folder / "images", **options)
    image = folder / "images/1.png"
    expected = Predictor(float_graph, backend="onnxruntime")(image).label_map
    found = Predictor(tmp_path, backend="onnxruntime")(image).label_map
    assert 0.9 < agreement < 1 and (found == expected).mean() > 0.9


@pytest.mark.integration
def test_below_the_bound_nothing_is_written(float_graph, folder, tmp_path):
    (tmp_path / "model.onnx").write_text("earlier export")
    options = {"format": "onnx", "int8": True, "min_agreement": 1}
    with pytest.raises(RunError, match=r"only 9.* of 2 held-out images, .*; nothing was written"):
        export(folder / "model.pdparams", tmp_path, folder / "images", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "earlier export"


@pytest.mark.integration
@pytest.mark.parametrize("number, calibrates", [(4, False), (5, True)])
def test_held_out_images_do_not_calibrate(
    number, calibrates, float_graph, int8_graph, folder, tmp_path
):
    """If one of them changes, the graph does not."""
    shutil.copytree(folder / "images", tmp_path / "images")
    cv2.imwrite(str(tmp_path / f"images/{number}.png"), np.full([96, 96, 3], [255, 0, 0], "uint8"))
    quantized(float_graph, tmp_path / "graph", tmp_path / "images")
    found, expected = ((x / "model.onnx").read_bytes() for x in (tmp_path / "graph", int8_graph[0]))
    assert (found != expected) == calibrates


def test_scores_of_two_graphs():
    """Agreement and mIoU over all images, by hand; backends return label maps or logits."""
    expected = {"a": np.array([[[0, 0, 1, 1]]]), "b": np.array([[[1, 1]]])}
    logits = {"a": np.eye(3)[[[[0, 1, 1, 1]]]], "b": np.eye(3)[[[[1, 2]]]]}
    scores = compare(
        lambda path: expected[path],
        lambda path: logits[path].transpose(0, 3, 1, 2),
        ["a", "b"],
        network_input=lambda path: path,
        classes=["x", "y", "z"],
    )
    assert scores.accuracy == pytest.approx(4 / 6)
    assert scores.miou == pytest.approx((1 / 2 + 3 / 5) / 2)  # z is in no label map of the first


def test_images_to_calibrate_on_and_to_verify_with(tmp_path):
    for i in range(MAX_IMAGES + 1):
        (tmp_path / f"{i:03}.png").touch()
    (tmp_path / "video.mp4").touch()
    calibration, held_out = find_calibration_images(tmp_path)
    assert [path.name for path in held_out[:2]] == ["000.png", "008.png"]
    assert [path.name for path in calibration[:4]] == [f"{i:03}.png" for i in (2, 4, 6, 10)]
    assert len(calibration) + len(held_out) == 51
    (tmp_path / "list.txt").write_text("000.png\n001.png\n000.png\n")
    split = find_calibration_images(tmp_path / "list.txt")
    assert [[path.name for path in paths] for paths in split] == [["001.png"], ["000.png"]]


FLAGS = [
    (["--int8", "--format", "paddle", "--image_path", "."], "--int8: needs --format onnx"),
    (["--int8", "--half", "--image_path", "."], "--int8: needs --format onnx, and no --half"),
    (["--int8"], "--int8: needs --image_path"),
    (["--int8", "--image_path", "{folder}/images/0.png"], "0.png: --int8 needs several images"),
    (["--int8", "--image_path", ".", "--min_agreement", "1.5"], "1.5: .* must be 0 to 1"),
    (["--int8", "--image_path", ".", "--min_agreement", "nan"], "nan: .* must be 0 to 1"),
    (["--format", "onnx", "--min_agreement", "0.5"], "--min_agreement 0.5: needs --int8"),
]


@pytest.mark.parametrize("flags, message", FLAGS)
def test_flags(flags, message, folder, tmp_path, monkeypatch):
    arguments = ["--model_path", folder / "model.pdparams", "--save_dir", tmp_path / "out"]
    arguments += [flag.format(folder=folder) for flag in flags]
    monkeypatch.setattr("sys.argv", ["export.py", *map(str, arguments)])
    with pytest.raises(InputError, match=message):
        command.main()
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    with pytest.raises(InputError, match="--int8: needs onnxruntime"):
        check_quantizer()

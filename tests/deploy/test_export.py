"""Exported graphs return the model's label map, at any size, with any backend."""

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest
import yaml
from PIL import Image
from shared import SHARED, needs_shared
from small_models import save, small_model

from paddleseg_segformer import MixVisionTransformer_B0, SegFormer
from paddleseg_segformer.deploy import export
from paddleseg_segformer.deploy.export_model import FoldedSegFormer
from paddleseg_segformer.errors import InputError
from paddleseg_segformer.inference import Predictor
from paddleseg_segformer.inference.backends import LockedBackend

ROOT = Path(__file__).parents[2]
SIZES = [(96, 128), (75, 90), (64, 200)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, and images of several sizes."""
    folder = tmp_path_factory.mktemp("model")
    save(small_model(), folder / "model.pdparams")
    rng = np.random.default_rng(0)
    for height, width in SIZES:
        image = rng.integers(0, 255, [height // 12, width // 12, 3]).astype("uint8")
        cv2.imwrite(str(folder / f"{height}.png"), cv2.resize(image, (width, height)))
    return folder


def images(folder):
    return [str(folder / f"{height}.png") for height, _ in SIZES]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("stage_projection", ["linear", "conv_bn_relu"])
def test_the_folded_head_is_equivalent(stage_projection, align_corners):
    model = small_model(stage_projection=stage_projection)
    model.align_corners = align_corners
    folded = FoldedSegFormer(model)
    folded.eval()
    image = paddle.randn([2, 3, 75, 90])
    with paddle.no_grad():
        expected, actual = model(image)[0], folded(image)
    np.testing.assert_allclose(actual.numpy(), expected.numpy(), atol=1e-4)


def backends(form):
    return ["paddle"] if form == "paddle" else ["onnxruntime", "openvino"]


@pytest.mark.parametrize("output_op", ["argmax", "softmax", "none"])
@pytest.mark.parametrize("form", ["paddle", "onnx"])
def test_graphs_of_any_size(form, output_op, folder, tmp_path):
    if form == "onnx":
        pytest.importorskip("paddle2onnx")
    weights = folder / "model.pdparams"
    options = {"format": form, "output_op": output_op, "with_normalize": output_op != "none"}
    assert export(weights, tmp_path, images(folder)[0], **options) >= 0.999
    expected = Predictor(weights, device="cpu")
    source = tmp_path if form == "paddle" else tmp_path / "model.onnx"
    for backend in backends(form):
        pytest.importorskip(backend)
        predictor = Predictor(source, backend=backend)
        assert predictor.classes == expected.classes
        for image in images(folder):
            found = predictor(image).label_map
            assert (found == expected(image).label_map).mean() >= 0.999, (backend, image)


@pytest.mark.parametrize("output_op", ["argmax", "softmax", "none"])
@pytest.mark.parametrize("form", ["paddle", "onnx"])
def test_graphs_of_a_fixed_size_resize_other_images(form, output_op, folder, tmp_path):
    """The label map of the resized image, resized back."""
    if form == "onnx":
        pytest.importorskip("paddle2onnx")
    weights, shape = folder / "model.pdparams", (1, 3, *SIZES[0])
    options = {"format": form, "output_op": output_op, "input_shape": shape}
    export(weights, tmp_path, images(folder)[1], **options)
    model = Predictor(weights, device="cpu")
    source = tmp_path if form == "paddle" else tmp_path / "model.onnx"
    predictor = Predictor(source, backend=backends(form)[0])
    found = predictor(images(folder)[0]).label_map
    assert (found == model(images(folder)[0]).label_map).mean() >= 0.999
    image = cv2.imread(images(folder)[1])[:, :, ::-1]
    resized = np.ascontiguousarray(cv2.resize(image, SIZES[0][::-1]))
    expected = model(resized).label_map
    expected = cv2.resize(expected, SIZES[1][::-1], interpolation=cv2.INTER_NEAREST)
    assert (predictor(image).label_map == expected).mean() > 0.93  # all but class borders


def test_logits_support_multi_scale_and_windows(folder, tmp_path):
    weights, image = folder / "model.pdparams", images(folder)[0]
    test_config = {"aug_eval": True, "scales": [0.75, 1.0], "flip_horizontal": True}
    test_config |= {"is_slide": True, "crop_size": (64, 64), "stride": (48, 48)}
    export(weights, tmp_path / "logits", image, output_op="none")
    found = Predictor(tmp_path / "logits", **test_config)(image).label_map
    expected = Predictor(weights, device="cpu", **test_config)(image).label_map
    assert (found == expected).mean() >= 0.999
    export(weights, tmp_path / "labels", image)
    with pytest.raises(InputError, match="--output_op none"):
        Predictor(tmp_path / "labels", **test_config)


@pytest.mark.parametrize("backend", ["paddle", "onnxruntime", "openvino"])
def test_threads_share_a_graph(backend, folder, tmp_path):
    """Each call returns the label map of its image."""
    pytest.importorskip(backend)
    form = "paddle" if backend == "paddle" else "onnx"
    if form == "onnx":
        pytest.importorskip("paddle2onnx")
    export(folder / "model.pdparams", tmp_path, images(folder)[0], format=form)
    predictor = Predictor(tmp_path, backend=backend)
    expected = [predictor(image).label_map for image in images(folder)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(predictor, images(folder) * 8))
    for i, prediction in enumerate(found):
        np.testing.assert_array_equal(prediction.label_map, expected[i % 3])


def test_paddle_inference_keeps_paddles_number_of_threads(folder, tmp_path):
    """Its run sets it to one, which would slow down all later calls and change rounding."""
    mkl = Path(paddle.__file__).parent / "libs" / "libmklml_intel.so"
    if not mkl.exists():
        pytest.skip("this Paddle computes without MKL")
    threads = ctypes.CDLL(str(mkl)).MKL_Get_Max_Threads
    before = threads()
    export(folder / "model.pdparams", tmp_path, images(folder)[0])
    assert threads() == before
    Predictor(tmp_path, backend="paddle")(images(folder)[0])
    assert threads() == before


def test_an_empty_output_means_an_unsupported_size():
    graph = LockedBackend(lambda images: np.zeros([0, 8, 8]))
    with pytest.raises(InputError, match="does not support images of 3x2 "):
        graph(np.zeros([1, 3, 2, 3], "float32"))


@pytest.mark.parametrize("shape", [(1, 3, 0, 0), (1, 3, -1, 64), (1, 1, 64, 64), (4, 3, 64, 64)])
def test_invalid_shapes_are_rejected(shape, folder, tmp_path):
    with pytest.raises(InputError, match=f"--input_shape {' '.join(map(str, shape))}: must be"):
        export(folder / "model.pdparams", tmp_path / "a", images(folder)[0], input_shape=shape)
    assert not (tmp_path / "a").exists()


def test_a_graph_without_weights_is_rejected(folder, tmp_path):
    export(folder / "model.pdparams", tmp_path, images(folder)[0])
    (tmp_path / "model.pdiparams").unlink()
    with pytest.raises(InputError, match=r"model\.pdiparams: does not exist"):
        Predictor(tmp_path)


@pytest.mark.parametrize("forms", [("paddle", "onnx"), ("onnx", "paddle")])
def test_an_export_replaces_earlier_ones(forms, folder, tmp_path):
    """Of either format; other files are kept."""
    pytest.importorskip("paddle2onnx")
    pytest.importorskip("onnxruntime")
    (tmp_path / "notes.txt").touch()
    other = save(small_model(classes=3), tmp_path / "other.pdparams")
    for weights, form in zip((other, folder / "model.pdparams"), forms):
        export(weights, tmp_path, images(folder)[0], format=form)
    assert len(Predictor(tmp_path).classes) == 5
    written = {"paddle": {"deploy.yaml", "model.json", "model.pdiparams"}, "onnx": {"model.onnx"}}
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"notes.txt", "other.pdparams"} | written[forms[1]]


def test_any_file_of_an_export_is_a_model_path(folder, tmp_path):
    image = images(folder)[0]
    export(folder / "model.pdparams", tmp_path, image)
    expected = Predictor(tmp_path)(image).label_map
    for name in ("deploy.yaml", "model.json", "model.pdiparams"):
        np.testing.assert_array_equal(Predictor(tmp_path / name)(image).label_map, expected)


def test_a_kill_leaves_no_mixture_of_two_exports(folder, tmp_path, monkeypatch):
    """Such as the graph of one with the weights or classes of the other."""
    sources = {3: save(small_model(classes=3), tmp_path / "o.pdparams")}
    sources[5] = folder / "model.pdparams"
    image, found, replace = images(folder)[0], [], os.replace
    expected = {n: Predictor(path, device="cpu")(image).label_map for n, path in sources.items()}
    export(sources[3], tmp_path / "earlier", image)
    for moves in (1, 2, 3):
        target, steps = tmp_path / f"{moves}", iter(range(moves))
        shutil.copytree(tmp_path / "earlier", target)

        def killed(*args, steps=steps):
            if next(steps, None) is None:
                raise KeyboardInterrupt
            replace(*args)

        monkeypatch.setattr(os, "replace", killed)
        with contextlib.suppress(KeyboardInterrupt):
            export(sources[5], target, image)
        try:
            predictor = Predictor(target)
        except InputError:
            found.append(0)
            continue
        found.append(len(predictor.classes))
        assert (predictor(image).label_map == expected[found[-1]]).mean() > 0.999
    assert found == [0, 0, 5]


def test_deploy_yaml_is_paddlesegs(folder, tmp_path):
    export(folder / "model.pdparams", tmp_path, images(folder)[0], input_shape=(1, 3, 64, 96))
    deploy = yaml.safe_load((tmp_path / "deploy.yaml").read_text())["Deploy"]
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    assert deploy == {
        "model": "model.json",
        "params": "model.pdiparams",
        "transforms": [{"type": "Normalize", "mean": mean, "std": std}],
        "input_shape": [1, 3, 64, 96],
        "output_op": "argmax",
        "output_dtype": "int32",
    }


def test_half_precision(folder, tmp_path):
    pytest.importorskip("paddle2onnx")
    weights, image = folder / "model.pdparams", images(folder)[0]
    for name, half in (("whole", False), ("half", True)):
        export(weights, tmp_path / name, image, format="onnx", half=half)
    sizes = [(tmp_path / name / "model.onnx").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.55 * sizes[1]
    found = Predictor(tmp_path / "half/model.onnx")(image).label_map
    assert (found == Predictor(weights, device="cpu")(image).label_map).mean() > 0.99


def test_the_graph_has_the_arithmetic_of_the_folded_head(tmp_path):
    """B0's published 8.4 GMACs at 512 x 512, minus the savings of the fold, computed from shapes.

    The fuse convolution, 4 * 256 * 256 * 128^2, and the four projections to 256 channels become
    four 1x1 convolutions of the stages' channels to 256, each at its stage's resolution.
    """
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("paddle2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    paddle.seed(0)
    weights = save(SegFormer(150, MixVisionTransformer_B0(), 256), tmp_path / "b0.pdparams")
    cv2.imwrite(str(tmp_path / "image.png"), np.zeros([512, 512, 3], "uint8"))
    shape = (1, 3, 512, 512)
    export(weights, tmp_path, tmp_path / "image.png", format="onnx", input_shape=shape)
    options = onnxruntime.SessionOptions()  # shapes are known only after constant folding
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "folded.onnx")
    onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), options)
    graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "folded.onnx")).graph
    found = multiply_accumulates(graph)
    assert abs(found - (8.4e9 - 4 * 256 * 256 * 128**2)) < 0.15e9


def multiply_accumulates(graph):
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.value_info}
    shapes |= {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.output}
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            shapes[node.output[0]] = list(node.attribute[0].t.dims)
    total = 0
    for node in graph.node:
        if node.op_type == "Conv":
            total += np.prod(shapes[node.output[0]]) * np.prod(shapes[node.input[1]][1:])
        elif node.op_type in ("MatMul", "Gemm"):
            total += np.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
    return int(total)


def test_export_uses_the_tuned_cpu_and_restores_the_device(folder, tmp_path, monkeypatch):
    module, device, calls = sys.modules["paddleseg_segformer.deploy.export"], ["gpu:0"], []
    monkeypatch.setattr(paddle, "get_device", lambda: device[-1])
    monkeypatch.setattr(paddle, "set_device", device.append)
    monkeypatch.setattr(module, "tune_cpu", lambda: calls.append("tuned"))
    load = module.load_model
    monkeypatch.setattr(module, "load_model", lambda *a: calls.append(device[-1]) or load(*a))
    export(folder / "model.pdparams", tmp_path, images(folder)[0])
    assert calls == ["tuned", "cpu"] and device[-1] == "gpu:0"
    with pytest.raises(InputError, match="absent"):
        export(tmp_path / "absent.pdparams", tmp_path, images(folder)[0])
    assert device[-1] == "gpu:0"


def test_invalid_input_is_named_and_writes_nothing(folder, tmp_path):
    weights, image = folder / "model.pdparams", images(folder)[0]
    with pytest.raises(InputError, match="--half: needs --format onnx"):
        export(weights, tmp_path / "a", image, half=True)
    export(weights, tmp_path / "b", image)
    with pytest.raises(InputError, match="is an exported graph already"):
        export(tmp_path / "b", tmp_path / "a", image)
    with pytest.raises(InputError, match="--backend openvino: does not read"):
        Predictor(tmp_path / "b", backend="openvino")
    with pytest.raises(InputError, match=r"absent\.png"):
        export(weights, tmp_path / "a", "absent.png")
    assert not (tmp_path / "a").exists()
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match=r"broken\.onnx"):
        Predictor(tmp_path / "broken.onnx")


@needs_shared
def test_the_tools_on_a_real_model(tmp_path):
    """Export and predict from the command line, against Hugging Face's label map."""
    weights = SHARED / "weights/segformer_b0_cityscapes_hf"
    image = SHARED / "reference/cityscapes_demo.png"
    run("export", "--model_path", weights, "--image_path", image, "--save_dir", tmp_path / "graph")
    assert sorted(path.name for path in (tmp_path / "graph").iterdir()) == [
        *("deploy.yaml", "model.json", "model.pdiparams")
    ]
    expected = np.load(SHARED / "reference/cityscapes_demo_logits.npz")["argmax_full"]
    for source in (weights, tmp_path / "graph"):
        run("predict", "--model_path", source, "--image_path", image, "--save_dir", tmp_path / "p")
        labels = np.asarray(Image.open(tmp_path / "p/label_map" / image.name))
        assert (labels == expected).mean() >= 0.999


def run(tool, *arguments):
    command = [sys.executable, f"tools/{tool}.py", "--device", "cpu", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr

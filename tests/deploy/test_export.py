"""Exported graphs return the model's label map, at any size, with any backend."""

import ctypes
import functools
import json
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
from paddleseg.deploy.infer import DeployConfig
from PIL import Image
from shared import SHARED, needs_shared
from small_models import SMALLEST, save, small_model, smallest_model

from paddleseg_segformer import (
    MixVisionTransformer,
    MixVisionTransformer_B0,
    Normalize,
    SegFormer,
)
from paddleseg_segformer.data.scenes import write_scenes
from paddleseg_segformer.deploy import export
from paddleseg_segformer.deploy.export import convert_to_onnx, write_paddle
from paddleseg_segformer.deploy.export_model import OUTPUT_OPS, ExportModel, FoldedSegFormer
from paddleseg_segformer.errors import InputError, RunError
from paddleseg_segformer.inference import Predictor, backends, predict
from paddleseg_segformer.inference.backends import (
    GRAPH_FILE,
    GRAPH_FILES,
    LockedBackend,
    PaddleInference,
    open_backend,
)
from paddleseg_segformer.inference.model_source import inference_config, resolve_model

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
SIZES = [(96, 128), (75, 90), (64, 200)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, and images of several sizes."""
    folder = tmp_path_factory.mktemp("model")
    save(smallest_model(), folder / "model.pdparams")
    rng = np.random.default_rng(0)
    for height, width in SIZES:
        image = rng.integers(0, 255, [height // 12, width // 12, 3]).astype("uint8")
        cv2.imwrite(str(folder / f"{height}.png"), cv2.resize(image, (width, height)))
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return Predictor(folder / "model.pdparams", device="cpu")


@pytest.fixture(scope="module")
def exported(folder, tmp_path_factory):
    """A function that exports the checkpoint, once with the same options; returns the folder."""

    @functools.cache
    def cached(form, output_op, options):
        target = tmp_path_factory.mktemp("graph")
        options = {"format": form, "output_op": output_op, **dict(options)}
        weights, image = folder / "model.pdparams", images(folder)[0]
        assert export(weights, target, image, **options) >= 0.999
        return target

    def make(form="paddle", output_op="argmax", **options):
        if form == "onnx":
            pytest.importorskip("paddle2onnx", reason="paddle2onnx is not installed")
        return cached(form, output_op, tuple(options.items()))

    return make


def images(folder):
    return [str(folder / f"{height}.png") for height, _ in SIZES]


def description(folder):
    """The contents of a folder's ``deploy.yaml``, or of that in its ONNX file."""
    if (folder / "deploy.yaml").exists():
        return yaml.safe_load((folder / "deploy.yaml").read_text())
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    (entry,) = onnx.load(folder / "model.onnx").metadata_props
    return yaml.safe_load(entry.value)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("stage_projection", ["linear", "conv_bn_relu"])
def test_the_folded_head_is_equivalent(stage_projection, align_corners):
    model = smallest_model(stage_projection=stage_projection)
    model.align_corners = align_corners
    folded = FoldedSegFormer(model)
    folded.eval()
    image = paddle.randn([2, 3, 75, 90])
    with paddle.no_grad():
        expected, actual = model(image)[0], folded(image)
    np.testing.assert_allclose(actual.numpy(), expected.numpy(), atol=1e-4)


class Listed(paddle.nn.Layer):
    """Returns the logits as PaddleSeg's models do."""

    def forward(self, x):
        return [x]


MEAN, STD = [0.1, 0.2, 0.6], [0.5, 0.25, 0.2]


@pytest.mark.parametrize("normalize", [None, Normalize(MEAN, STD)], ids=["", "normalize"])
@pytest.mark.parametrize("output_op", OUTPUT_OPS)
def test_outputs_of_a_written_graph(output_op, normalize, tmp_path):
    """Of a model whose logits are its input in the order blue, red, green, against NumPy."""
    model = paddle.nn.Sequential(paddle.nn.Conv2D(3, 3, 1, bias_attr=False), Listed())
    order = np.eye(3, dtype="float32")[[2, 0, 1]]
    model[0].weight.set_value(order[:, :, None, None])
    write_paddle(ExportModel(model, output_op, normalize), [-1, 3, -1, -1], tmp_path)
    image = np.random.default_rng(0).uniform(0, 3, [1, 3, 5, 7]).astype("float32")
    image *= 1 if normalize is None else 85
    found = PaddleInference(tmp_path)(image)
    mean, std = (np.reshape(x, [3, 1, 1]) for x in (MEAN, STD))
    logits = (image if normalize is None else (image / 255 - mean) / std)[:, [2, 0, 1]]
    odds = np.exp(logits)
    results = {"none": logits, "softmax": odds / odds.sum(axis=1), "argmax": logits.argmax(axis=1)}
    assert found.dtype == ("int32" if output_op == "argmax" else "float32")
    np.testing.assert_allclose(found, results[output_op], rtol=1e-4, atol=1e-5)


BACKENDS = {"paddle": ["paddle"], "onnx": ["onnxruntime", "openvino"]}


SLOW = [pytest.param("onnx", "softmax", marks=pytest.mark.slow)]
ANY_SIZE = [("paddle", op) for op in OUTPUT_OPS] + [("onnx", "argmax"), ("onnx", "none"), *SLOW]


@pytest.mark.parametrize("form, output_op", ANY_SIZE)
def test_graphs_of_any_size(form, output_op, exported, folder, model):
    """The model's label map of each image, and an output as described in ``deploy.yaml``."""
    normalize = {"with_normalize": True} if output_op == "softmax" else {}
    source = exported(form, output_op, **normalize)
    dtype = description(source)["Deploy"]["output_dtype"]
    for backend in BACKENDS[form]:
        pytest.importorskip(backend, reason=f"{backend} is not installed")
        predictor = Predictor(source, backend=backend)
        assert predictor.classes == model.classes
        for image in images(folder):
            found = predictor(image).label_map
            assert (found == model(image).label_map).mean() >= 0.999, (backend, image)
        path = source if form == "paddle" else source / "model.onnx"
        output = open_backend(path, backend)(np.zeros([1, 3, 64, 96], "float32"))
        assert output.dtype == dtype
        assert output.shape == ((1, 64, 96) if output_op == "argmax" else (1, 5, 64, 96))


SLOW.append(pytest.param("onnx", "argmax", marks=pytest.mark.slow))
FIXED = [("paddle", op) for op in OUTPUT_OPS] + [("onnx", "none"), *SLOW]


@pytest.mark.parametrize("form, output_op", FIXED)
def test_graphs_of_a_fixed_size_resize_other_images(form, output_op, exported, folder, model):
    """The label map of the resized image, resized back."""
    source = exported(form, output_op, input_shape=(1, 3, *SIZES[0]))
    assert description(source)["Deploy"]["input_shape"] == [1, 3, *SIZES[0]]
    predictor = Predictor(source, backend=BACKENDS[form][0])
    found = predictor(images(folder)[0]).label_map
    assert (found == model(images(folder)[0]).label_map).mean() >= 0.999
    image = cv2.imread(images(folder)[1])[:, :, ::-1]
    resized = np.ascontiguousarray(cv2.resize(image, SIZES[0][::-1]))
    expected = model(resized).label_map
    expected = cv2.resize(expected, SIZES[1][::-1], interpolation=cv2.INTER_NEAREST)
    assert (predictor(image).label_map == expected).mean() > 0.93  # all but class borders


def with_resize_and_padding(transforms):
    resize = {"type": "ResizeByLong", "long_size": 160}
    return [resize, {"type": "Padding", "target_size": [192, 96]}, *transforms]


@pytest.mark.parametrize("output_op", OUTPUT_OPS)
def test_resizes_and_padding_before_a_graph_are_undone(output_op, exported, folder, tmp_path):
    """Of an image of 200x64: resized to 160x51, and padded to 192x96."""
    shutil.copytree(exported(output_op=output_op), tmp_path, dirs_exist_ok=True)
    changed = description(tmp_path)
    changed["Deploy"]["transforms"] = with_resize_and_padding(changed["Deploy"]["transforms"])
    (tmp_path / "deploy.yaml").write_text(yaml.safe_dump(changed))
    config = resolve_model(folder / "model.pdparams").config
    config.dic["val_dataset"]["transforms"] = changed["Deploy"]["transforms"]
    expected = Predictor(folder / "model.pdparams", config, device="cpu")(images(folder)[2])
    found = Predictor(tmp_path)(images(folder)[2]).label_map
    assert (found == expected.label_map).mean() > 0.9  # all but class borders


def test_logits_support_multi_scale_and_windows(exported, folder):
    weights, image = folder / "model.pdparams", images(folder)[0]
    test_config = {"aug_eval": True, "scales": [0.75, 1.0], "flip_horizontal": True}
    test_config |= {"is_slide": True, "crop_size": (64, 64), "stride": (48, 48)}
    found = Predictor(exported(output_op="none"), **test_config)(image)
    expected = Predictor(weights, device="cpu", **test_config)(image).label_map
    assert (found.label_map == expected).mean() >= 0.999
    with pytest.raises(InputError, match="--output_op none"):
        Predictor(exported(), **test_config)


@pytest.mark.parametrize("backend", ["paddle", "onnxruntime", "openvino"])
def test_threads_share_a_graph(backend, exported, folder):
    """Each call returns the label map of its image."""
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    form = "paddle" if backend == "paddle" else "onnx"
    source = exported(form)
    predictor = Predictor(source, backend=backend)
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


@pytest.mark.parametrize("backend", BACKENDS["onnx"])
def test_an_onnx_graph_names_an_unsupported_size(backend, exported):
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    with pytest.raises(InputError, match="The graph does not support images of 2x3 "):
        Predictor(exported("onnx"), backend=backend)(np.zeros([3, 2, 3], "uint8"))


def test_an_empty_output_means_an_unsupported_size():
    graph = LockedBackend(lambda images: np.zeros([0, 8, 8]))
    with pytest.raises(InputError, match="does not support images of 3x2 "):
        graph(np.zeros([1, 3, 2, 3], "float32"))


@pytest.mark.parametrize(
    "shape", [(1, 3, 0, 0), (1, 3, 31, 64), (1, 3, -1, 64), (1, 1, 64, 64), (4, 3, 64, 64)]
)
def test_invalid_shapes_are_rejected(shape, folder, tmp_path):
    with pytest.raises(InputError, match=f"--input_shape {' '.join(map(str, shape))}: must be"):
        export(folder / "model.pdparams", tmp_path / "a", images(folder)[0], input_shape=shape)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("right_height", [96, 80])
def test_a_graph_that_disagrees_is_not_written(right_height, folder, tmp_path, monkeypatch):
    """It is compared on the whole image, 96 pixels high, and on a part of it, 80 pixels high."""

    def wrong(path):
        graph = PaddleInference(path)
        return lambda x: graph(x) if x.shape[2] == right_height else 1 + graph(x)

    monkeypatch.setattr(sys.modules["paddleseg_segformer.deploy.export"], "PaddleInference", wrong)
    with pytest.raises(RunError, match=r"only 0\.00% of the pixels of .*; nothing was written"):
        export(folder / "model.pdparams", tmp_path, images(folder)[0])
    assert not list(tmp_path.iterdir())


def test_a_graph_without_weights_is_rejected(exported, tmp_path):
    shutil.copytree(exported(), tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.pdiparams").unlink()
    with pytest.raises(InputError, match=r"model\.pdiparams: does not exist"):
        Predictor(tmp_path)


def test_paddle_2_refuses_a_graph_of_paddle_3(exported, tmp_path, monkeypatch):
    """Paddle Inference 2.6 would end the process with a segmentation fault."""
    shutil.copytree(exported(), tmp_path, dirs_exist_ok=True)
    (tmp_path / GRAPH_FILE).rename(tmp_path / "model.json")
    monkeypatch.setattr(backends, "GRAPH_FILE", "model.pdmodel")
    with pytest.raises(InputError, match=r"model\.pdmodel: does not exist; export the model again"):
        Predictor(tmp_path)


def test_a_paddle2onnx_for_another_paddle_is_named(exported, tmp_path, monkeypatch):
    """Version 2 raises ValueError when it is imported with Paddle 2.6."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    (tmp_path / "paddle2onnx.py").write_text("raise ValueError('too old')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"is not for PaddlePaddle .*pip install 'paddle2onnx<2'"):
        convert_to_onnx(exported())


@pytest.mark.parametrize("forms", [("paddle", "onnx"), ("onnx", "paddle")])
def test_an_export_replaces_earlier_ones(forms, exported, folder, tmp_path):
    """Of either format, by either Paddle; other files are kept."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    earlier = exported(forms[0])
    shutil.copytree(earlier, tmp_path, dirs_exist_ok=True)
    for name in ("notes.txt", *GRAPH_FILES):
        (tmp_path / name).touch()
    config = resolve_model(folder / "model.pdparams").config
    transforms = with_resize_and_padding(config.dic["val_dataset"]["transforms"])
    config.dic["val_dataset"]["transforms"] = transforms
    options = {"format": forms[1], "output_op": "softmax", "input_shape": (1, 3, 64, 64)}
    export(folder / "model.pdparams", tmp_path, images(folder)[2], config, **options)
    source = resolve_model(tmp_path)
    assert source.output_op == "softmax" and source.input_shape == [1, 3, 64, 64]
    assert source.config.val_dataset_cfg["transforms"] == transforms
    written = {"paddle": {"deploy.yaml", GRAPH_FILE, "model.pdiparams"}, "onnx": {"model.onnx"}}
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt"} | written[forms[1]]
    Predictor(tmp_path)(images(folder)[2])


def test_any_file_of_an_export_is_a_model_path(exported, folder):
    image, source = images(folder)[0], exported()
    expected = Predictor(source)(image).label_map
    for name in ("deploy.yaml", GRAPH_FILE, "model.pdiparams"):
        np.testing.assert_array_equal(Predictor(source / name)(image).label_map, expected)


def test_a_kill_leaves_no_mixture_of_two_exports(folder, tmp_path, monkeypatch):
    """Such as the graph of one with the weights or classes of the other."""
    sources = {3: save(smallest_model(classes=3), tmp_path / "o.pdparams")}
    sources[5] = folder / "model.pdparams"
    image, states, replace = images(folder)[0], [tmp_path / "target"], os.replace
    expected = {n: Predictor(path, device="cpu")(image).label_map for n, path in sources.items()}
    export(sources[3], states[0], image)

    def replace_and_copy(*args):
        """Copy the folder as a kill before or after this move leaves it."""
        for move in (lambda: None, lambda: replace(*args)):
            move()
            states.append(tmp_path / f"state{len(states)}")
            shutil.copytree(states[0], states[-1])

    with monkeypatch.context() as patches:
        patches.setattr(os, "replace", replace_and_copy)
        export(sources[5], states[0], image)
    found = []
    for state in states[1:]:
        try:
            predictor = Predictor(state)
        except InputError:
            found.append(0)
            continue
        found.append(len(predictor.classes))
        assert (predictor(image).label_map == expected[found[-1]]).mean() > 0.999
    assert found == [0, 0, 0, 0, 0, 5]


def test_deploy_yaml_is_paddlesegs(exported, folder, model):
    """PaddleSeg finds the files, and its transforms make the graph's input."""
    source = exported()
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    assert description(source)["Deploy"] == {
        "model": GRAPH_FILE,
        "params": "model.pdiparams",
        "transforms": [{"type": "Normalize", "mean": mean, "std": std}],
        "input_shape": [-1, 3, -1, -1],
        "output_op": "argmax",
        "output_dtype": "int32",
    }
    deploy = DeployConfig(str(source / "deploy.yaml"))
    for path in (deploy.model, deploy.params):
        assert Path(path).is_file()
    for image in images(folder):
        x = deploy.transforms({"img": image})["img"]
        (labels,) = PaddleInference(Path(deploy.model).parent)(x[None])
        assert (labels == model(image).label_map).mean() >= 0.999


def weight_types(path):
    """ONNX's numbers of the types of a graph's weights: 1 is float32, 10 is float16."""
    graph = pytest.importorskip("onnx", reason="onnx is not installed").load(path).graph
    constants = [n.attribute[0].t for n in graph.node if n.op_type == "Constant"]
    return {x.data_type for x in [*graph.initializer, *constants] if np.prod(x.dims) > 99}


def test_half_precision(exported, folder, model):
    whole, half = exported("onnx"), exported("onnx", half=True)
    assert [weight_types(path / "model.onnx") for path in (whole, half)] == [{1}, {10}]
    image = images(folder)[0]
    found = Predictor(half)(image).label_map
    assert (found == model(image).label_map).mean() > 0.99


@pytest.mark.slow
def test_the_graph_has_the_arithmetic_of_the_folded_head(tmp_path):
    """B0's published 8.4 GMACs at 512 x 512, minus the savings of the fold, computed from shapes.

    The fuse convolution, 4 * 256 * 256 * 128^2, and the four projections to 256 channels become
    four 1x1 convolutions of the stages' channels to 256, each at its stage's resolution.
    """
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("paddle2onnx", reason="paddle2onnx is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
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


def test_invalid_input_is_named_and_writes_nothing(exported, folder, tmp_path):
    weights, image, graph = folder / "model.pdparams", images(folder)[0], exported()
    with pytest.raises(InputError, match="--half: needs --format onnx"):
        export(weights, tmp_path / "a", image, half=True)
    with pytest.raises(InputError, match="is an exported graph already"):
        export(graph, tmp_path / "a", image)
    with pytest.raises(InputError, match=r"--probabilities: .* --output_op none"):
        predict(graph, image, tmp_path / "c", probabilities=True)
    with pytest.raises(InputError, match="--backend openvino: does not read"):
        Predictor(graph, backend="openvino")
    config = resolve_model(weights).config
    config.dic["val_dataset"]["transforms"].append({"type": "Resize"})
    with pytest.raises(InputError, match="--with_normalize: the last validation transform must"):
        export(weights, tmp_path / "a", image, config, with_normalize=True)
    with pytest.raises(InputError, match=r"absent\.png"):
        export(weights, tmp_path / "a", "absent.png")
    assert not (tmp_path / "a").exists()
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match=r"broken\.onnx"):
        Predictor(tmp_path / "broken.onnx")


def test_the_image_of_the_comparison_is_of_the_validation_set(folder, tmp_path, caplog):
    """That of the checkpoint's config, unless it is missing or damaged; or else a drawn one."""
    caplog.set_level("INFO", "paddleseg_segformer")
    write_scenes(tmp_path / "data", train=1, val=1, size=(96, 96))
    dataset = {"type": "ADE20K", "dataset_root": str(tmp_path / "data"), "mode": "val"}
    dataset["transforms"] = [{"type": "Normalize", "mean": [0.5] * 3, "std": [0.2] * 3}]
    backbone = {"type": "MixVisionTransformer", **SMALLEST}
    model = {"type": "SegFormer", "embedding_dim": 32, "backbone": backbone}
    manifest = {"config": {"model": model, "val_dataset": dataset}, "classes": list("abcde")}
    manifest["palette"] = [[0, 0, 0]] * 5
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    shutil.copy(folder / "model.pdparams", tmp_path)
    assert export(tmp_path / "model.pdparams", tmp_path / "graph") >= 0.999
    image = tmp_path / "data/images/validation/scene_val_00000001.jpg"
    assert f"Comparing the export with the original model on {image}" in caplog.text
    image.write_bytes(b"damaged")
    assert export(tmp_path / "model.pdparams", tmp_path / "graph") >= 0.999
    assert "on a drawn image" in caplog.text


def test_a_drawn_image_for_weights_without_a_dataset(folder, tmp_path, caplog):
    caplog.set_level("INFO", "paddleseg_segformer")
    assert export(folder / "model.pdparams", tmp_path) >= 0.999
    assert "on a drawn image" in caplog.text


@pytest.mark.parametrize("with_normalize", [False, True])
def test_a_drawn_image_for_floats_in_their_own_units(with_normalize, folder, tmp_path):
    """Elevations, say, of 100 to 200; Normalize would refuse an 8-bit image."""
    normalize = {"type": "Normalize", "mean": [150.0], "std": [50.0]}
    backbone = {"type": "MixVisionTransformer", **SMALLEST}
    model = {"type": "SegFormer", "embedding_dim": 32, "num_classes": 5, "backbone": backbone}
    config = inference_config(model, [normalize])
    options = {"config": config, "with_normalize": with_normalize}
    assert export(folder / "model.pdparams", tmp_path, **options) >= 0.999


# Those of the graphs here that TensorRT 10.15 supports, by docs/operators.md of onnx/onnx-tensorrt.
TENSORRT = {"Add", "ArgMax", "Cast", "Concat", "Constant", "Conv", "Div", "Erf", "Identity"}
TENSORRT |= {"LayerNormalization", "MatMul", "Mul", "Relu", "Reshape", "Resize", "Shape", "Slice"}
TENSORRT |= {"Softmax", "Split", "Squeeze", "Transpose", "Unsqueeze"}


@pytest.mark.parametrize("options", [{}, {"input_shape": (1, 3, 64, 96)}], ids=["any", "fixed"])
def test_tensorrt_supports_the_operators_of_a_graph(options, exported):
    """By its documented list and restrictions; TensorRT itself is not run."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    model = onnx.load(exported("onnx", **options) / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert {node.op_type for node in model.graph.node} <= TENSORRT
    for node in model.graph.node:
        values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "LayerNormalization":
            assert len(node.output) == 1
        if node.op_type == "Resize":
            assert values["mode"] == b"linear"
            assert values["coordinate_transformation_mode"] in (b"half_pixel", b"align_corners")
            assert not values.get("antialias")


@pytest.mark.slow
@needs_shared
def test_the_tools_on_a_real_model(tmp_path):
    """Export and predict from the command line, against Hugging Face's label map."""
    weights = SHARED / "weights/segformer_b0_cityscapes_hf"
    image = SHARED / "reference/cityscapes_demo.png"
    run("export", "--model_path", weights, "--image_path", image, "--save_dir", tmp_path / "graph")
    assert sorted(path.name for path in (tmp_path / "graph").iterdir()) == [
        *("deploy.yaml", GRAPH_FILE, "model.pdiparams")
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


@pytest.mark.parametrize("bands", [1, 6])
@pytest.mark.parametrize("shape", [None, "1 {} 64 96", "1 {} -1 -1"])
def test_other_numbers_of_bands(bands, shape, tmp_path):
    """Compared on the bands of a drawn image, repeated."""
    backbone = MixVisionTransformer(**SMALLEST, in_channels=bands)
    file = save(small_model(backbone=lambda: backbone), tmp_path / "model.pdparams")
    input_shape = shape and [int(side) for side in shape.format(bands).split()]
    assert export(file, tmp_path / "out", input_shape=input_shape) > 0.999
    graph, predictor = Predictor(tmp_path / "out"), Predictor(file, device="cpu")
    image = np.random.default_rng(0).random([64, 96, bands])
    assert graph.channels == predictor.channels == bands
    assert (graph(image).label_map == predictor(image).label_map).mean() > 0.999
    with pytest.raises(InputError, match=f"^--input_shape 1 3 -1 -1: must be 1 {bands} H W, 32"):
        export(file, tmp_path / "out", input_shape=(1, 3, -1, -1))

"""Every source format is recognized, converted and loaded."""

import csv
import re

import numpy as np
import paddle
import pytest
from checkpoint_fixtures import FORMATS, huggingface_5
from paddleseg.cvlibs import manager
from reference import assert_close, random_state, segformer
from shared import SHARED, needs_shared
from small_models import tiny_model, without_initialization

import paddleseg_segformer as ps
from paddleseg_segformer.weights import load_pretrained, read_weights

WIDTHS = {"B0": 256, "B1": 256, "B2": 768}


def random_model(size, projection, classes=19, width=None, seed=0):
    """A model with random values in all tensors, including the BatchNorm statistics."""
    paddle.seed(seed)
    with without_initialization():
        backbone = getattr(ps, f"MixVisionTransformer_{size}")()
        model = ps.SegFormer(classes, backbone, width or WIDTHS[size], stage_projection=projection)
    for name, tensor in model.state_dict().items():
        noise = paddle.randn(tensor.shape) * 0.05
        tensor.set_value(noise.abs() + 0.5 if name.endswith("_variance") else tensor + noise)
    model.eval()
    return model


def arrays(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def assert_weights(model, expected):
    actual = arrays(model)
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


# LayerNorm epsilons of each implementation: of blocks and stages, and after other convolutions.
PAPER = (1e-6, 1e-5)
EPSILONS = {"huggingface": (1e-5,) * 2, "mmseg": (1e-6,) * 2, "paddlevit": (1e-5,) * 2}


@pytest.mark.parametrize("name", [*FORMATS, "huggingface of transformers 5"])
def test_logits_are_those_of_the_source(name, caplog):
    """In NumPy, with the source's epsilons, which a warning names if they are not the model's."""
    name, _, new_names = name.partition(" of ")
    write, projection = FORMATS[name]
    state, images = random_state(projection), np.random.default_rng(1).normal(size=[1, 3, 64, 96])
    checkpoint = (huggingface_5 if new_names else write)(state, 5)
    result = ps.load_weights(tiny_model(random_state(projection, seed=1)), checkpoint)
    assert not result.missing and not result.unexpected and result.checkpoint.format == name
    epsilons = EPSILONS.get(name, PAPER)
    warned = [float(text) for text in re.findall(r"norm_epsilon=(\S+) for", caplog.text)]
    assert warned == ([] if epsilons == PAPER else [epsilons[0]])
    caplog.clear()
    epsilon = result.checkpoint.norm_epsilon
    model = tiny_model(random_state(projection, seed=1), norm_epsilon=epsilon)
    ps.load_weights(model, checkpoint)
    assert not caplog.text
    with paddle.no_grad():
        (logits,) = model(paddle.to_tensor(images, "float32"), resize_logits=False)
    assert_close(logits.numpy(), segformer(state, images, *epsilons))


MARKS = {("B0", "nvlabs"): (), ("B2", "mmseg"): pytest.mark.integration}
WHOLE_MODELS = [
    pytest.param(size, name, marks=MARKS.get((size, name), pytest.mark.slow))
    for size in WIDTHS
    for name in FORMATS
]


@pytest.mark.parametrize("size, name", WHOLE_MODELS)
def test_whole_model(size, name):
    write, projection = FORMATS[name]
    source, target = (random_model(size, projection, seed=seed) for seed in (1, 2))
    result = ps.load_weights(target, write(arrays(source), 19))
    assert not result.missing and not result.unexpected
    assert result.checkpoint.format == name
    assert_weights(target, arrays(source))
    assert result.checkpoint.architecture.variant == size
    assert str(WIDTHS[size]) in str(result.checkpoint.architecture)


REFERENCES = {
    "paddleseg": "paddleseg_b0",
    "nvlabs": "nvlabs_b0",
    "huggingface": "huggingface_b0_cityscapes",
    "mmseg": "mmseg_b0",
    "paddlevit": "paddlevit_b0",
}


@needs_shared
@pytest.mark.parametrize("name", FORMATS)
def test_names_and_shapes_are_the_published_ones(name):
    """The fixtures of these tests have the names and shapes of published checkpoints."""
    write, projection = FORMATS[name]
    with open(SHARED / f"reference/state_dicts/{REFERENCES[name]}.tsv") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    published = {key: [int(n) for n in shape.split("x") if n] for key, shape in rows}
    classes = 19 if name == "huggingface" else 150
    ours = write(arrays(random_model("B0", projection, classes)), classes)
    written = {key: list(value.shape) for key, value in ours.items()}
    if name == "nvlabs":  # the list lacks the classifier that the project never uses
        unused = {key for key in written if ".conv_seg." in key} - published.keys()
        written = {key: shape for key, shape in written.items() if key not in unused}
    if name == "huggingface":
        counts = {key for key in written if "num_batches_tracked" in key} - published.keys()
        written = {key: shape for key, shape in written.items() if key not in counts}
    assert written == {key: shape for key, shape in published.items() if key in written}
    assert not {key for key in published if key not in written and "num_batches" not in key}


BACKBONES = {
    "paddleseg": lambda state: {**strip(state), "head.weight": np.ones([256, 1000], "float32")},
    "nvlabs": lambda state: {**strip(state), "head.weight": np.ones([1000, 256], "float32")},
    "huggingface": lambda state: {
        **{k.replace("segformer.", ""): v for k, v in state.items() if "encoder" in k},
        "classifier.weight": np.ones([1000, 256], "float32"),
    },
    "mmseg": lambda state: strip(state),
    "paddlevit": lambda state: strip(state),
}


def strip(state):
    return {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}


@pytest.mark.parametrize("name", FORMATS)
def test_imagenet_backbone(name):
    """It loads into a backbone, and into a whole model, whose head is unchanged."""
    write, projection = FORMATS[name]
    source, target = (random_model("B0", projection, seed=seed) for seed in (1, 2))
    state = BACKBONES[name](write(arrays(source), 19))
    head = {k: v for k, v in arrays(target).items() if not k.startswith("backbone.")}
    backbone = ps.MixVisionTransformer_B0()
    assert not ps.load_weights(backbone, state).missing
    result = ps.load_weights(target, state)
    assert set(result.missing) == head.keys() and not result.unexpected
    assert_weights(backbone, arrays(source.backbone))
    assert_weights(target.backbone, arrays(source.backbone))
    assert_weights(target, head)


def test_fused_query_key_and_value_are_split():
    """mmsegmentation concatenates the three along the first axis."""
    write, projection = FORMATS["mmseg"]
    state = write(arrays(random_model("B0", projection)), 19)
    name = "backbone.layers.1.1.0.attn.attn.in_proj_weight"
    state[name] = np.repeat([1.0, 2.0, 3.0], 64)[:, None] * np.ones([1, 64], "float32")
    converted = read_weights(state).state
    assert (converted["backbone.block2.0.attn.q.weight"] == 1).all()
    assert converted["backbone.block2.0.attn.kv.weight"][0].tolist() == [2.0] * 64 + [3.0] * 64


def test_a_mismatch_names_the_config_that_fits():
    write, projection = FORMATS["mmseg"]
    state = write(arrays(random_model("B1", projection)), 19)
    with pytest.raises(ps.InputError) as caught:
        ps.load_weights(random_model("B0", "linear"), state)
    message = str(caught.value)
    assert "MixVisionTransformer_B1" in message and "stage_projection to conv_bn_relu" in message
    with pytest.raises(ps.InputError, match="embedding_dim to 256"):
        ps.load_weights(random_model("B1", projection, width=64), state)


def test_a_classifier_of_another_size_is_not_loaded(caplog):
    source, target = random_model("B0", "linear", classes=7), random_model("B0", "linear")
    classifier = arrays(target)["linear_pred.weight"]
    result = ps.load_weights(target, arrays(source))
    assert result.missing == ["linear_pred.weight", "linear_pred.bias"]
    assert "the given arrays has another number of classes than the model" in caplog.text
    np.testing.assert_array_equal(arrays(target)["linear_pred.weight"], classifier)


def test_missing_and_unexpected_tensors():
    source, target = random_model("B0", "linear", seed=1), random_model("B0", "linear")
    state, before = arrays(source), arrays(target)
    more = {**state, "backbone.extra.weight": np.ones([2], "float32")}
    with pytest.raises(ps.InputError, match=r"arrays: has unexpected tensors, backbone\.extra"):
        ps.load_weights(target, more)
    gone = [key for key in state if "block3.1.mlp" in key]
    for key in gone:
        del state[key]
    state["backbone.extra.weight"] = np.ones([2], "float32")
    with pytest.raises(ps.InputError, match=rf"{gone[0]}.* and {len(gone) - 3} more.*extra"):
        ps.load_weights(target, state)
    for key, value in arrays(target).items():
        np.testing.assert_array_equal(value, before[key])
    result = ps.load_weights(target, state, strict=False)
    assert result.missing == gone and result.unexpected == ["backbone.extra.weight"]


def test_an_incomplete_backbone_is_an_error():
    state = arrays(random_model("B0", "linear").backbone)
    del state["norm2.bias"]
    for model in (ps.MixVisionTransformer_B0(), random_model("B0", "linear")):
        with pytest.raises(ps.InputError, match=r"lacks, or has .* (backbone\.)?norm2\.bias; use"):
            ps.load_weights(model, state)


def test_no_matching_tensor_is_an_error_even_if_not_strict():
    model = manager.MODELS.components_dict["BiSeNetV2"](num_classes=2)
    with pytest.raises(ps.InputError, match=r"unexpected tensors, patch_embed1\.proj\.weight"):
        ps.load_weights(model, arrays(random_model("B0", "linear")), strict=False)


def test_half_precision_becomes_float32():
    source, target = random_model("B0", "linear", seed=1), random_model("B0", "linear")
    ps.load_weights(target, {k: v.astype("float16") for k, v in arrays(source).items()})
    for key, value in arrays(target).items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, arrays(source)[key].astype("float16"))


def test_the_other_byte_order():
    source, target = ps.MixVisionTransformer_B0(), ps.MixVisionTransformer_B0()
    ps.load_weights(target, {key: value.astype(">f4") for key, value in arrays(source).items()})
    assert_weights(target, arrays(source))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_model_of_half_precision_keeps_it(dtype):
    source, target = ps.MixVisionTransformer_B0(), ps.MixVisionTransformer_B0()
    target.to(dtype=dtype)
    ps.load_weights(target, arrays(source))
    for name, tensor in target.state_dict().items():
        expected = source.state_dict()[name].astype(dtype).astype("float32").numpy()
        # Paddle 2.6 and 3.0 round towards zero.
        ulp = np.abs(expected) * (2.0**-10 if dtype == "float16" else 2.0**-7) + 2.0**-24
        tolerance = ulp if paddle.__version__.startswith(("2.", "3.0.")) else 0
        difference = np.abs(tensor.astype("float32").numpy() - expected)
        assert (difference <= tolerance).all(), name
        assert tensor.dtype == getattr(paddle, dtype)


def test_a_bfloat16_number_of_paddle():
    """Paddle saves bfloat16 as uint16; here a tensor without dimensions."""
    state = {**arrays(random_model("B0", "linear")), "scale": np.array(0xC040, "uint16")}
    assert read_weights(state).state["scale"] == -3


@pytest.mark.parametrize("wrap", [dict, lambda state: {"state_dict": state, "epoch": 3}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_dictionary_is_unwrapped_as_a_file_is(prefix, wrap):
    source, target = ps.MixVisionTransformer_B0(), ps.MixVisionTransformer_B0()
    state = {prefix + name: value for name, value in arrays(source).items()}
    assert not ps.load_weights(target, wrap({**state, "steps": 3, "note": "ours"})).unexpected
    assert_weights(target, arrays(source))


def test_tensors_of_frameworks():
    """PyTorch parameters that require gradients, and bfloat16, which NumPy lacks."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    source, target = ps.MixVisionTransformer_B0(), ps.MixVisionTransformer_B0()
    for kind in (torch.float32, torch.bfloat16):
        state = {
            name: torch.tensor(value, dtype=kind, requires_grad=True)
            for name, value in arrays(source).items()
        }
        ps.load_weights(target, state)
        assert_weights(target, {n: value.detach().float().numpy() for n, value in state.items()})
    ps.load_weights(target, source.state_dict())
    np.testing.assert_array_equal(target.norm1.weight.numpy(), source.norm1.weight.numpy())


@pytest.mark.parametrize(
    "source, message",
    [
        (None, "given as NoneType; give a path"),
        (False, "given as bool"),
        ([np.ones(2)], "given as list"),
        ({}, "holds no tensors; its first keys are none"),
        ({"a": [[1], [1, 2]]}, "holds no tensors; its first keys are a"),
        ({0: np.ones(2)}, "first tensors are 0"),
        ({"a": np.array(["text"])}, "a is not numeric"),
    ],
)
def test_sources_without_weights_are_errors(source, message):
    with pytest.raises(ps.InputError, match=message):
        ps.load_weights(ps.MixVisionTransformer_B0(), source)


def test_another_model_is_an_error_with_its_tensor_names():
    with pytest.raises(ps.InputError, match=r"is no SegFormer.*layer1\.0\.conv1\.weight"):
        read_weights({"layer1.0.conv1.weight": np.ones([2, 2])})


def test_nan_is_an_error():
    state = arrays(random_model("B0", "linear"))
    state["backbone.norm1.bias"] = np.full([32], np.nan, "float32")
    with pytest.raises(ps.InputError, match=r"backbone\.norm1\.bias has NaN"):
        ps.load_weights(random_model("B0", "linear"), state)


@pytest.mark.parametrize(
    "dtype, number", [("float16", 1e5), ("bfloat16", 1e39), ("float32", 1e300)]
)
def test_a_number_beyond_the_range_of_the_models_dtype_is_an_error(dtype, number):
    target = ps.MixVisionTransformer_B0()
    target.to(dtype=dtype)
    before = target.norm1.bias.astype("float32").numpy()
    state = {name: value + 1.0 for name, value in arrays(ps.MixVisionTransformer_B0()).items()}
    state["norm4.bias"] = np.full([256], number)
    message = rf"norm4\.bias has numbers beyond the range of the model's {dtype}"
    with pytest.raises(ps.InputError, match=message):
        ps.load_weights(target, state)
    np.testing.assert_array_equal(target.norm1.bias.astype("float32").numpy(), before)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64"])
def test_integer_and_boolean_tensors_load(dtype):
    model = paddle.nn.Layer()
    model.register_buffer("mask", paddle.zeros([3], dtype))
    ps.load_weights(model, {"mask": np.array([0, 1, 1], dtype)})
    assert model.mask.tolist() == [0, 1, 1]


def test_a_classifier_without_bias_is_an_error():
    state = arrays(random_model("B0", "linear"))
    del state["linear_pred.bias"]
    with pytest.raises(ps.InputError, match=r"lacks, .*shape, linear_pred\.bias; use a"):
        ps.load_weights(random_model("B0", "linear"), state)


@pytest.mark.parametrize("name", ["huggingface", "mmseg"])
def test_damaged_projections_are_an_input_error(name):
    write, projection = FORMATS[name]
    state = write(arrays(random_model("B0", projection)), 19)
    if name == "huggingface":
        del state["segformer.encoder.block.0.0.attention.self.value.weight"]
    else:
        key = "backbone.layers.0.1.0.attn.attn.in_proj_weight"
        state[key] = state[key][:-1]
    with pytest.raises(ps.InputError, match=f"damaged {name} checkpoint"):
        read_weights(state)


@pytest.mark.parametrize("shape", [(), (4,), (2, 4, 1)])
def test_a_projection_that_is_not_a_matrix_is_an_input_error(shape):
    state = {"backbone.block1.0.attn.kv.weight": np.ones(shape, "float32")}
    with pytest.raises(ps.InputError, match="damaged paddleseg checkpoint"):
        read_weights(state)


def test_another_norm_epsilon_is_a_warning(caplog):
    write, projection = FORMATS["huggingface"]
    state = write(arrays(random_model("B0", projection)), 19)
    with caplog.at_level("WARNING"):
        ps.load_weights(random_model("B0", "linear"), state)
    assert "norm_epsilon=1e-05" in caplog.text
    caplog.clear()
    ours = ps.SegFormer(19, ps.MixVisionTransformer_B0(norm_epsilon=1e-5), 256)
    ps.load_weights(ours, state)
    assert "norm_epsilon" not in caplog.text


def test_a_layer_named_head_of_another_model_is_loaded(tmp_path):
    """ENCNet has a layer named head, like the ImageNet classifier of a published backbone."""
    backbone = ps.MixVisionTransformer_B0()
    model = manager.MODELS.components_dict["ENCNet"](num_classes=3, backbone=backbone)
    paddle.save(model.state_dict(), str(tmp_path / "model.pdparams"))
    loaded = ps.load_weights(model, tmp_path / "model.pdparams")
    assert "head.weight" in loaded.loaded
    assert not loaded.missing and not loaded.unexpected


def test_another_paddleseg_model(tmp_path):
    """A model without a Mix Transformer loads by name, without conversion."""
    source, target = (manager.MODELS.components_dict["BiSeNetV2"](num_classes=2) for _ in "ab")
    state = {name: value + 1 for name, value in arrays(source).items()}
    paddle.save({name: paddle.to_tensor(v) for name, v in state.items()}, str(tmp_path / "m"))
    loaded = ps.load_weights(target, tmp_path / "m")
    assert not loaded.missing and not loaded.unexpected
    assert loaded.checkpoint.source == str(tmp_path / "m")
    assert (loaded.checkpoint.norm_epsilon, loaded.checkpoint.architecture) == (None, None)
    assert_weights(target, state)


def test_load_pretrained_is_logged(caplog):
    state, target = arrays(random_model("B0", "linear", seed=1)), ps.MixVisionTransformer_B0()
    with caplog.at_level("INFO"):
        load_pretrained(target, None)
        assert not caplog.text
        load_pretrained(target, state)
    count = len(target.state_dict())
    assert f"Loaded {count} of {count} tensors from the given arrays (paddleseg, Seg" in caplog.text
    for name, value in arrays(target).items():
        np.testing.assert_array_equal(value, state[f"backbone.{name}"])

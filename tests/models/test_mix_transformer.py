"""The backbone, its variants and their configs against the paper."""

import math
from pathlib import Path

import numpy as np
import paddle
import pytest
from reference import TINY
from small_models import randomize, without_initialization

import paddleseg_segformer as ps
from paddleseg_segformer.config import build, load_config
from paddleseg_segformer.models import VARIANTS

CONFIGS = Path(__file__).parents[2] / "configs"


def shapes(model):
    return {name: value.shape for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", VARIANTS)
@without_initialization()
def test_variants(name):
    """By name, by constructor and from the config, with the paper's number of parameters."""
    model = ps.SegFormer(150, name)
    count = sum(math.prod(p.shape) for p in model.parameters() if not p.stop_gradient)
    assert round(count / 1e6, 1) == VARIANTS[name].params_millions
    backbone = getattr(ps, f"MixVisionTransformer_{name}")()
    explicit = ps.SegFormer(150, backbone, embedding_dim=VARIANTS[name].decoder_width)
    path = CONFIGS / f"segformer_mit-{name.lower()}_512x512_160k_ade20k.yaml"
    (from_config,) = build(load_config(path, ["model.backbone.pretrained=null"]), "model")
    assert shapes(model) == shapes(explicit) == shapes(from_config)
    heads = [getattr(backbone, f"block{i}")[0].attn.num_heads for i in range(1, 5)]
    ratios = [getattr(backbone, f"block{i}")[0].attn.sr_ratio for i in range(1, 5)]
    assert (tuple(heads), tuple(ratios)) == VARIANTS[name][2:4] == ((1, 2, 5, 8), (8, 4, 2, 1))


@pytest.mark.parametrize(
    "option, value, wrong",
    [
        *((name, [1] * 5, "it must be a list of 4") for name in ("depths", "sr_ratios")),
        ("mlp_ratios", 4, "it must be a list of 4"),
        ("embed_dims", [64, 128, 320], "it must be a list of 4"),
        ("num_heads", [1, 2, 5], "it must be a list of 4"),
        ("num_heads", [1, 2, 6, 8], "not a multiple of 6 heads"),
        ("num_heads", [1, 2, 0, 8], "not a multiple of 0 heads"),
        ("qk_scale", "big", "it must be a number"),
    ],
)
def test_wrong_arguments_raise(option, value, wrong):
    with pytest.raises(ValueError, match=f"{option}.*{wrong}"):
        ps.MixVisionTransformer(**{option: value})
    config = load_config(CONFIGS / "segformer_mit-b0_512x512_160k_ade20k.yaml")
    config.dic["model"]["backbone"] = {"type": "MixVisionTransformer", option: value}
    with pytest.raises(ps.InputError, match=f"MixVisionTransformer: .*{option}.*{wrong}"):
        build(config, "model")


@pytest.mark.parametrize("height, width", [(512, 512), (500, 333), (64, 1024), (32, 33)])
def test_strides(height, width):
    backbone = ps.MixVisionTransformer_B0()
    backbone.eval()
    with paddle.no_grad():
        maps = backbone(paddle.zeros([1, 3, height, width]))
    expected = [
        [1, channels, math.ceil(height / stride), math.ceil(width / stride)]
        for channels, stride in zip(backbone.feat_channels, (4, 8, 16, 32))
    ]
    assert [m.shape for m in maps] == expected
    assert backbone.feat_channels == [32, 64, 160, 256]


def test_stochastic_depth_increases_linearly_over_all_blocks():
    backbone = ps.MixVisionTransformer_B1()
    rates = [block.drop_path.rate for i in range(1, 5) for block in getattr(backbone, f"block{i}")]
    assert rates == pytest.approx([0.1 * i / 7 for i in range(8)])


def test_norm_epsilons():
    """As of the published checkpoints: 1e-6 in and after blocks, 1e-5 after convolutions."""
    epsilons = {"norm1": 1e-6, "norm2": 1e-6, "norm3": 1e-6, "norm4": 1e-6, "norm": 1e-5}
    for name, layer in ps.MixVisionTransformer_B0().named_sublayers():
        if isinstance(layer, paddle.nn.LayerNorm):
            assert layer._epsilon == epsilons[name.split(".")[-1]], name
    one = ps.MixVisionTransformer_B0(norm_epsilon=1e-4)
    norms = [layer for layer in one.sublayers() if isinstance(layer, paddle.nn.LayerNorm)]
    assert {layer._epsilon for layer in norms} == {1e-4}


def test_channels_of_the_images():
    """One channel is the same as three equal ones, whose weights are added."""
    paddle.seed(0)
    color, gray = ps.MixVisionTransformer(**TINY), ps.MixVisionTransformer(**TINY, in_channels=1)
    state, name = color.state_dict(), "patch_embed1.proj.weight"
    gray.set_state_dict({**state, name: state[name].sum(axis=1, keepdim=True)})
    color.eval(), gray.eval()
    image = paddle.randn([1, 1, 64, 64])
    for actual, expected in zip(gray(image), color(image.tile([1, 3, 1, 1]))):
        np.testing.assert_allclose(actual.numpy(), expected.numpy(), atol=1e-5)


def test_expansion_ratios_of_the_mix_ffn():
    backbone = ps.MixVisionTransformer(**TINY, mlp_ratios=(1, 2, 3, 2.5))
    mlps = [getattr(backbone, f"block{i}")[0].mlp for i in range(1, 5)]
    assert [mlp.fc1.weight.shape for mlp in mlps] == [[4, 4], [8, 16], [10, 30], [16, 40]]
    assert [m.shape for m in backbone(paddle.zeros([1, 3, 64, 64]))][3] == [1, 16, 2, 2]


def test_initial_weights():
    """Standard deviations, of layers that are large enough to estimate them."""
    paddle.seed(0)
    backbone = ps.MixVisionTransformer_B1()
    block = backbone.block4[0]
    linear = block.mlp.fc1.weight.numpy()
    assert linear.std() == pytest.approx(0.02, rel=0.01)
    assert block.mlp.dwconv.dwconv.weight.numpy().std() == pytest.approx(math.sqrt(2 / 9), rel=0.03)
    assert backbone.patch_embed4.proj.weight.numpy().std() == pytest.approx(
        math.sqrt(2 / (9 * 512)), rel=0.02
    )
    assert not block.mlp.fc1.bias.numpy().any() and (block.norm1.weight.numpy() == 1).all()


@pytest.mark.parametrize("frozen", ["", "patch_embed1"])
def test_recompute_has_the_same_gradients(frozen):
    """Dropout and stochastic depth draw the same masks again."""
    images, gradients = paddle.randn([2, 3, 64, 96]), []
    paddle.seed(0)
    backbone = ps.MixVisionTransformer_B0(drop_rate=0.2, attn_drop_rate=0.2, drop_path_rate=0.5)
    backbone.train()
    for name, parameter in backbone.named_parameters():
        parameter.stop_gradient = bool(frozen) and name.startswith(frozen)
    trained = {name: p for name, p in backbone.named_parameters() if not p.stop_gradient}
    for backbone.recompute in (False, True):
        paddle.seed(1)
        sum((features**2).sum() for features in backbone(images)).backward()
        gradients.append({name: p.grad.numpy() for name, p in trained.items()})
        backbone.clear_gradients()
    for name, gradient in gradients[0].items():
        # Rounding may differ, but not more; other masks would change whole gradients.
        close = {"rtol": 1e-5, "atol": 1e-6 * np.abs(gradient).max()}
        np.testing.assert_allclose(gradients[1][name], gradient, **close, err_msg=name)
    assert any(gradient.any() for gradient in gradients[0].values())


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("qk_scale", [None, 0.7])
def test_attention_is_equation_1(qkv_bias, qk_scale):
    """In NumPy, head by head, without sequence reduction."""
    paddle.seed(0)
    backbone = ps.MixVisionTransformer_B0(qkv_bias=qkv_bias, qk_scale=qk_scale)
    randomize(backbone)
    attention = backbone.block4[0].attn
    names = {name.split(".")[-2] for name in attention.state_dict() if name.endswith("bias")}
    assert names == ({"q", "kv", "proj"} if qkv_bias else {"proj"})
    x = np.random.default_rng(0).normal(size=[6, 256])

    def linear(layer):
        bias = 0 if layer.bias is None else layer.bias.numpy()
        return lambda x: x @ layer.weight.numpy().astype("float64") + bias

    q, (k, v) = linear(attention.q)(x), np.split(linear(attention.kv)(x), 2, axis=1)
    heads = []
    for i in range(8):
        head = slice(32 * i, 32 * (i + 1))
        scores = np.exp(q[:, head] @ k[:, head].T * (qk_scale or 32**-0.5))
        heads.append(scores / scores.sum(1, keepdims=True) @ v[:, head])
    expected = linear(attention.proj)(np.concatenate(heads, axis=1))
    actual = attention(paddle.to_tensor(x[None].astype("float32")), 2, 3).numpy()[0]
    np.testing.assert_allclose(actual, expected, atol=1e-5)

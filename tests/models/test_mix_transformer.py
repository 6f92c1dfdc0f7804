"""The encoder and the six configurations against the paper's tables."""

import math
from pathlib import Path

import numpy as np
import paddle
import pytest
from small_models import randomize

import paddleseg_segformer as ps
from paddleseg_segformer.config import build, load_config

CONFIGS = Path(__file__).parents[2] / "configs"

# Paper, table 1: parameters in millions of the models for ADE20K.
PARAMETERS = {0: 3.8, 1: 13.7, 2: 27.5, 3: 47.3, 4: 64.1, 5: 84.7}


@pytest.mark.parametrize("size", PARAMETERS)
def test_config_builds_the_papers_model(size):
    path = CONFIGS / f"segformer_mit-b{size}_512x512_160k_ade20k.yaml"
    (model,) = build(load_config(path, ["model.backbone.pretrained=null"]), "model")
    count = sum(math.prod(p.shape) for p in model.parameters() if not p.stop_gradient)
    assert round(count / 1e6, 1) == PARAMETERS[size]


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
def test_wrong_arguments_are_named(option, value, wrong):
    with pytest.raises(ValueError, match=f"{option}.*{wrong}"):
        ps.MixVisionTransformer(**{option: value})
    config = load_config(CONFIGS / "segformer_mit-b0_512x512_160k_ade20k.yaml")
    config.dic["model"]["backbone"] = {"type": "MixVisionTransformer", option: value}
    with pytest.raises(ps.InputError, match=f"MixVisionTransformer: .*{option}.*{wrong}"):
        build(config, "model")


@pytest.mark.parametrize("height, width", [(512, 512), (500, 333), (64, 1024), (32, 33)])
def test_strides(height, width):
    encoder = ps.MixVisionTransformer_B0()
    encoder.eval()
    with paddle.no_grad():
        maps = encoder(paddle.zeros([1, 3, height, width]))
    expected = [
        [1, channels, math.ceil(height / stride), math.ceil(width / stride)]
        for channels, stride in zip(encoder.feat_channels, (4, 8, 16, 32))
    ]
    assert [m.shape for m in maps] == expected
    assert encoder.feat_channels == [32, 64, 160, 256]


def test_stochastic_depth_rises_linearly_over_all_blocks():
    encoder = ps.MixVisionTransformer_B1()
    rates = [block.drop_path.rate for i in range(1, 5) for block in getattr(encoder, f"block{i}")]
    assert rates == pytest.approx([0.1 * i / 7 for i in range(8)])


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    paddle.seed(0)
    layer = ps.models.mix_transformer.DropPath(0.25)
    out = layer(paddle.ones([4000, 3, 2])).numpy()
    assert (out == out[:, :1, :1]).all()
    np.testing.assert_allclose(np.unique(out), [0, 4 / 3], rtol=1e-6)
    assert out.mean() == pytest.approx(1, abs=0.03)


def test_norm_epsilons():
    """DESIGN: 1e-6 for the norms of blocks and stages, 1e-5 for those after convolutions."""
    kinds = {"norm1": 1e-6, "norm2": 1e-6, "norm3": 1e-6, "norm4": 1e-6, "norm": 1e-5}
    for name, layer in ps.MixVisionTransformer_B0().named_sublayers():
        if isinstance(layer, paddle.nn.LayerNorm):
            assert layer._epsilon == kinds[name.split(".")[-1]], name
    one = ps.MixVisionTransformer_B0(norm_epsilon=1e-4)
    norms = [layer for layer in one.sublayers() if isinstance(layer, paddle.nn.LayerNorm)]
    assert {layer._epsilon for layer in norms} == {1e-4}


def test_initial_weights():
    """Standard deviations of the paper's initialization, on layers large enough to measure."""
    paddle.seed(0)
    encoder = ps.MixVisionTransformer_B1()
    block = encoder.block4[0]
    linear = block.mlp.fc1.weight.numpy()
    assert linear.std() == pytest.approx(0.02, rel=0.01)
    assert block.mlp.dwconv.dwconv.weight.numpy().std() == pytest.approx(math.sqrt(2 / 9), rel=0.03)
    assert encoder.patch_embed4.proj.weight.numpy().std() == pytest.approx(
        math.sqrt(2 / (9 * 512)), rel=0.02
    )
    assert not block.mlp.fc1.bias.numpy().any() and (block.norm1.weight.numpy() == 1).all()


@pytest.mark.parametrize("frozen", ["", "patch_embed1"])
def test_recompute_changes_no_gradient(frozen):
    """Dropped samples and channels are drawn once, not anew in the backward pass."""
    images, gradients = paddle.randn([2, 3, 64, 96]), []
    paddle.seed(0)
    encoder = ps.MixVisionTransformer_B0(drop_rate=0.2, attn_drop_rate=0.2, drop_path_rate=0.5)
    encoder.train()
    for name, parameter in encoder.named_parameters():
        parameter.stop_gradient = bool(frozen) and name.startswith(frozen)
    trained = {name: p for name, p in encoder.named_parameters() if not p.stop_gradient}
    for encoder.recompute in (False, True):
        paddle.seed(1)
        sum((features**2).sum() for features in encoder(images)).backward()
        gradients.append({name: p.grad.numpy() for name, p in trained.items()})
        encoder.clear_gradients()
    for name, gradient in gradients[0].items():
        # Other buffers may round otherwise; another draw would differ as a whole.
        close = {"rtol": 1e-5, "atol": 1e-6 * np.abs(gradient).max()}
        np.testing.assert_allclose(gradients[1][name], gradient, **close, err_msg=name)
    assert any(gradient.any() for gradient in gradients[0].values())


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("qk_scale", [None, 0.7])
def test_attention_is_the_papers_formula(qkv_bias, qk_scale):
    """Equation 1 in NumPy, head by head, with keys and values of all tokens."""
    paddle.seed(0)
    encoder = ps.MixVisionTransformer_B0(qkv_bias=qkv_bias, qk_scale=qk_scale)
    randomize(encoder)
    attention = encoder.block4[0].attn
    names = {name.split(".")[-2] for name in attention.state_dict() if name.endswith("bias")}
    assert names == ({"q", "kv", "proj"} if qkv_bias else {"proj"})
    x = np.random.default_rng(0).normal(size=[6, 256])

    def linear(layer):
        bias = 0 if layer.bias is None else layer.bias.numpy()
        return lambda x: x @ layer.weight.numpy().astype("float64") + bias

    q, (k, v) = linear(attention.q)(x), np.split(linear(attention.kv)(x), 2, axis=1)
    heads = []
    for i in range(8):
        part = slice(32 * i, 32 * (i + 1))
        scores = np.exp(q[:, part] @ k[:, part].T * (qk_scale or 32**-0.5))
        heads.append(scores / scores.sum(1, keepdims=True) @ v[:, part])
    expected = linear(attention.proj)(np.concatenate(heads, axis=1))
    actual = attention(paddle.to_tensor(x[None].astype("float32")), 2, 3).numpy()[0]
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_attention_weights_are_dropped_in_training_alone():
    """Equal keys give each value the same weight; of the kept ones it is 1 / (1 - rate) larger."""
    paddle.seed(0)
    attention = ps.MixVisionTransformer_B0(attn_drop_rate=0.75).block1[0].attn
    q, v = paddle.randn([1, 40, 1, 32]), paddle.eye(32)[None, :, None]
    for training, weights in ((True, {0, 4}), (False, {1})):
        attention.train() if training else attention.eval()
        mixed = attention._attend(q, paddle.ones([1, 32, 1, 32]), v).numpy() * 32
        assert set(np.unique(mixed.round(3)).tolist()) == weights


@pytest.mark.parametrize("chunk", [1, 40, 10**6])
def test_attention_in_chunks_is_the_same_function(monkeypatch, chunk):
    paddle.seed(0)
    attention = ps.MixVisionTransformer_B0().block2[0].attn
    q, k, v = (paddle.randn([2, length, 2, 32]) for length in (24, 6, 6))
    whole = attention._attend(q, k, v)
    monkeypatch.setattr(ps.models.mix_transformer, "MAX_SCORES", chunk)
    with paddle.no_grad():
        np.testing.assert_allclose(attention._attend(q, k, v).numpy(), whole.numpy(), atol=1e-6)


def test_fused_attention_is_the_same_function(monkeypatch):
    """The way of half precision, for which a CPU has no operators, taken in single precision."""
    paddle.seed(0)
    attention = ps.MixVisionTransformer_B0(qk_scale=0.3).block2[0].attn
    q, k, v = (paddle.randn([2, length, 2, 32]) for length in (24, 6, 6))
    plain = attention._attend(q, k, v)
    monkeypatch.setattr(ps.models.mix_transformer, "FUSED_TYPES", (paddle.float32,))
    fused = attention._attend(q, k, v)
    assert not paddle.equal_all(fused, paddle.zeros_like(fused))
    np.testing.assert_allclose(fused.numpy(), plain.numpy(), atol=1e-6)


def test_a_gpu_older_than_ampere_has_no_fused_attention(monkeypatch):
    """Where not every Paddle looks: some end with "FlashAttention is unsupported"."""
    module = ps.models.mix_transformer
    attention = ps.MixVisionTransformer_B0().block2[0].attn
    q, k, v = (paddle.randn([2, length, 2, 32]) for length in (24, 6, 6))
    plain = attention._attend(q, k, v)
    monkeypatch.setattr(module, "FUSED_TYPES", (paddle.float32,))
    monkeypatch.delattr(paddle.nn.functional, "scaled_dot_product_attention")
    monkeypatch.setattr(module, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(paddle.base.core.Place, "is_gpu_place", lambda place: True)
    np.testing.assert_array_equal(attention._attend(q, k, v).numpy(), plain.numpy())

"""Training with the samples of a batch in parallel: the results of the whole batch."""

import sys

import numpy as np
import paddle
import pytest
from reference import TINY

from paddleseg_segformer import MixVisionTransformer, SegFormer

module = sys.modules["paddleseg_segformer.ops.parallel_samples"]


@pytest.fixture
def parts(use_threads, monkeypatch):
    """Takes a number of threads and returns a list, to which the sizes of the parts are added."""
    apply = module._ParallelSamples.apply

    def set_threads(count):
        sizes = []

        def record(function, *rest):
            def run(replica, part):
                sizes.append(part.stop - part.start)
                return function(replica, part)

            return apply(run, *rest)

        use_threads(count)
        monkeypatch.setattr(module._ParallelSamples, "apply", record)
        return sizes

    return set_threads


@pytest.fixture
def float64():
    """New tensors and layers are float64: only errors of more than rounding remain."""
    paddle.set_default_dtype("float64")
    yield
    paddle.set_default_dtype("float32")


def tiny(projection="linear", backbone=MixVisionTransformer, **options):
    paddle.seed(0)
    encoder = backbone(**{**TINY, "drop_path_rate": 0.5, **options})
    model = SegFormer(5, encoder, 16, projection, dropout=0.3)
    model.train()
    return model


def train(model, images):
    """Logits, gradients and BatchNorm statistics by name, and the random numbers after it."""
    paddle.seed(1)
    logits = model(images)[0]
    (logits**3).mean().backward()
    state = {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
    state.update({n: v.numpy() for n, v in model.state_dict().items() if n.endswith(("n", "e"))})
    return {**state, "logits": logits.detach().numpy(), "random": paddle.rand([4]).numpy()}


@pytest.mark.cpu_branch("a GPU processes the whole batch at once")
@pytest.mark.parametrize(
    "threads, batch, sizes",
    [(2, 2, [1, 1]), (2, 3, [1, 2]), (3, 4, [1, 1, 2]), (3, 2, [1, 1])],
)
@pytest.mark.parametrize("projection", ["linear", "conv_bn_relu"])
def test_results_are_those_of_the_whole_batch(threads, batch, sizes, projection, parts, float64):
    """With stochastic depth and dropout, for which the same random numbers are drawn."""
    images = paddle.randn([batch, 3, 64, 96])
    parts(1)
    expected = train(tiny(projection), images)
    actual_sizes = parts(threads)
    actual = train(tiny(projection), images)
    assert sorted(actual_sizes) == sizes
    assert actual.keys() == expected.keys() and len(expected) > 100
    for name, value in expected.items():
        close = {"rtol": 1e-8, "atol": 1e-12 + 1e-10 * np.abs(value).max()}
        np.testing.assert_allclose(actual[name], value, **close, err_msg=name)


@pytest.mark.cpu_branch("a GPU processes the whole batch at once")
def test_gradients_accumulate_and_frozen_parameters_have_none(parts, float64):
    images = paddle.randn([2, 3, 64, 64])
    results = []
    for threads in (1, 2):
        sizes = parts(threads)
        model = tiny()
        for parameter in [*model.backbone.patch_embed1.parameters(), model.linear_c1.proj.bias]:
            parameter.stop_gradient = True
        train(model, images)
        results.append(train(model, images))
    assert sizes == [1, 1] * 2 and results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        close = {"rtol": 1e-8, "atol": 1e-12 + 1e-10 * np.abs(value).max()}
        np.testing.assert_allclose(results[1][name], value, **close, err_msg=name)


class Subclass(MixVisionTransformer):
    """May have layers that depend on the batch."""


NOT_SPLIT = {
    "one thread": {"threads": 1},
    "one sample": {"batch": 1},
    "dropout": {"drop_rate": 0.1},
    "dropout of attention": {"attn_drop_rate": 0.1},
    "recompute": {"recompute": True},
    "another backbone": {"backbone": Subclass},
}


@pytest.mark.parametrize("case", NOT_SPLIT)
def test_other_models_and_batches_are_not_split(case, parts):
    options = dict(NOT_SPLIT[case])
    sizes = parts(options.pop("threads", 2))
    images = paddle.randn([options.pop("batch", 2), 3, 32, 32])
    train(tiny(**options), images)
    assert not sizes


def test_hooks_other_layers_gradients_of_images_and_inference_see_the_whole_batch(parts):
    sizes, images, seen = parts(2), paddle.randn([2, 3, 32, 32]), []
    model = tiny()
    with paddle.no_grad():
        model(images)
    hook = model.backbone.norm1.register_forward_post_hook(lambda *args: seen.append(len(args[2])))
    train(model, images)
    hook.remove()
    model.backbone.norm1 = paddle.nn.Sequential(model.backbone.norm1, paddle.nn.Tanh())
    train(model, images)
    leaf = images.clone()
    leaf.stop_gradient = False
    train(tiny(), leaf)
    assert not sizes and seen == [2] and leaf.grad.numpy().any()


def test_errors_in_a_thread_reach_the_caller(parts, monkeypatch):
    parts(2)
    model = tiny()
    with pytest.raises(ValueError, match="too small"):
        monkeypatch.setattr(model.backbone.patch_embed2, "forward", fail)
        model(paddle.randn([2, 3, 32, 32]))


def fail(_):
    raise ValueError("too small")

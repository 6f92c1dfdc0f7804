"""The multi-tensor AdamW for GPUs beside Paddle's AdamW: on a CPU they have the same bits."""

import numpy as np
import paddle
import pytest
from paddleseg.cvlibs import manager

from paddleseg_segformer.engine import optimizer as optimizer_module
from paddleseg_segformer.engine.optimizer import AdamW, fuse_updates

GROUPS = [{"name": "linear_", "lr_mult": 10.0}, {"name": "norm", "weight_decay_mult": 0.0}]


class Model(paddle.nn.Layer):
    """Parameters of the recipe's three groups."""

    def __init__(self):
        super().__init__()
        self.conv = paddle.nn.Conv2D(3, 5, 3)
        self.norm = paddle.nn.LayerNorm(7)
        self.linear_pred = paddle.nn.Linear(7, 300)  # larger than a chunk is in the test below


@pytest.fixture
def on_gpu(monkeypatch):
    """The branch for GPUs, whose kernel takes a call's bias correction from its first parameter."""
    kernel = paddle._C_ops.fused_adam_

    def checked(*arguments):
        *_, beta1_powers, beta2_powers = (x for x in arguments if isinstance(x, (list, tuple)))
        for powers in beta1_powers, beta2_powers:
            assert len({power.item() for power in powers}) == 1
        return kernel(*arguments)

    monkeypatch.setattr(paddle._C_ops, "fused_adam_", checked)
    optimizer_module._can_fuse.cache_clear()
    monkeypatch.setattr(paddle.base.core.Place, "is_cpu_place", lambda place: False)
    yield
    optimizer_module._can_fuse.cache_clear()


def build(kind="AdamW", **options):
    paddle.seed(0)
    with paddle.utils.unique_name.guard():
        model = Model()
    rate = paddle.optimizer.lr.PolynomialDecay(1e-2, 10)
    return model, manager.OPTIMIZERS[kind](weight_decay=0.1, **options)(model, rate)


def update(model, optimizer, step, without=()):
    """A step with random gradients, and none of the parameters named by ``without``."""
    rng, products = np.random.default_rng(step), []
    for name, parameter in model.named_parameters():
        gradient = paddle.to_tensor(rng.standard_normal(parameter.shape), dtype="float32")
        products += [] if name in without else [(parameter * gradient).sum()]
    paddle.add_n(products).backward()
    with paddle.utils.unique_name.guard():  # moments of the same name in all optimizers
        optimizer.step()
    optimizer.clear_grad(set_to_zero=False)
    optimizer._learning_rate.step()


def state(model, optimizer):
    """Weights and the optimizer's state, arrays by name."""
    tensors = {**model.state_dict(), **optimizer.state_dict()}
    return {n: t.numpy() for n, t in tensors.items() if isinstance(t, paddle.Tensor)}


def assert_equal(actual, expected):
    assert list(actual) == list(expected)
    for name, value in actual.items():
        assert value.dtype == expected[name].dtype
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


CLIP = {"name": "ClipGradByGlobalNorm", "clip_norm": 0.5}


@pytest.mark.parametrize("options", [{}, {"custom_cfg": GROUPS}, {"grad_clip_cfg": CLIP}])
def test_weights_and_state_are_those_of_adamw(options, on_gpu, monkeypatch):
    monkeypatch.setattr(optimizer_module, "CHUNK_SIZE", 1 << 10)
    expected, actual = build(**options), build(**options)
    fuse_updates(actual[1], actual[0].parameters())
    assert isinstance(actual[1], AdamW) and type(expected[1]) is paddle.optimizer.AdamW
    assert type(actual[1]).__name__ == type(expected[1]).__name__  # as checkpoints record it
    # Each parameter's bias correction follows the number of its own updates.
    without = [(), ("conv.weight",), (), ("conv.bias", "norm.weight", "linear_pred.bias"), ()]
    for step, names in enumerate(without):
        update(*expected, step, names)
        update(*actual, step, names)
        assert_equal(state(*actual), state(*expected))


@pytest.mark.parametrize("fused_first", [False, True])
def test_training_continues_with_the_other_kind(fused_first, on_gpu):
    """Also from a state that is loaded into an optimizer in use."""
    expected, first, second = (build(custom_cfg=GROUPS) for _ in range(3))
    for model, optimizer in [first] if fused_first else [second]:
        fuse_updates(optimizer, model.parameters())
    for step, names in enumerate([(), ("conv.weight",), ()]):
        update(*expected, step, names)
        update(*first, step, names)
    update(*second, 5)
    second[0].set_state_dict(first[0].state_dict())
    second[1].set_state_dict(first[1].state_dict())
    for step in range(3, 5):
        update(*expected, step)
        update(*second, step)
    assert_equal(state(*second), state(*expected))


def test_one_call_for_each_group(on_gpu, monkeypatch):
    model, optimizer = build(custom_cfg=GROUPS)
    fuse_updates(optimizer, model.parameters())
    calls, call = [], paddle._C_ops.fused_adam_
    monkeypatch.setattr(
        paddle._C_ops, "fused_adam_", lambda *args: calls.append(len(args[0])) or call(*args)
    )
    for step in range(2):
        update(model, optimizer, step)
    assert sorted(calls) == [2] * 6  # weight and bias of each of three layers, in two steps


ON_A_CPU = pytest.param("on a CPU", marks=pytest.mark.cpu_branch("a CPU keeps Paddle's AdamW"))


@pytest.mark.parametrize("case", [ON_A_CPU, "SGD", "chosen decay", "no kernel", "other results"])
def test_other_optimizers_stay_as_they_are(case, request, monkeypatch):
    if case != "on a CPU":
        request.getfixturevalue("on_gpu")
    kernel = paddle._C_ops.fused_adam_
    if case == "no kernel":
        monkeypatch.delattr(paddle._C_ops, "fused_adam_")
    if case == "other results":  # without weight decay
        replaced = lambda *args: kernel(*args[:-5], 0.0, *args[-4:])  # noqa: E731
        monkeypatch.setattr(paddle._C_ops, "fused_adam_", replaced)
    model, optimizer = build("SGD" if case == "SGD" else "AdamW")
    if case == "chosen decay":
        optimizer._apply_decay_param_fun = lambda name: False
    kind = type(optimizer)
    fuse_updates(optimizer, model.parameters())
    assert type(optimizer) is kind
    update(model, optimizer, 0)

"""Each operator of ``ops`` on the device, beside Paddle's own operators in float64 on the CPU."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import profiler

from .. import ops
from .runner import Result

# Bounds of the relative error |actual - exact| / |exact|, in Euclidean norms, of an operator's
# result and of each of its gradients. A factor of 1.01 is an error of 1e-2. PyTorch's operators on
# these inputs on an H200 have the errors that are given as measured.
BOUNDS = {
    # A unit roundoff of 6e-8, in sums of up to a thousand terms; 8e-7 measured.
    "float32": 1e-5,
    # A unit roundoff of 4.9e-4, of the result and of the values between two operators, while sums
    # within one are in float32; 7.5e-4 measured, where the gradient of a resize is summed in half.
    "float16": 2e-3,
    # A unit roundoff of 3.9e-3, likewise; 6.1e-3 measured.
    "bfloat16": 9e-3,
}
# A unit roundoff of 4.9e-4, of the operands of products; 4.2e-4 measured.
TF32_BOUND = 1.5e-3
PARAMETERS = ("weight", "bias")  # in float32 in mixed precision, too
MAX_DIFFERENT_LABELS = 1e-3  # share of the pixels whose two best classes rounding may swap


class Operator(NamedTuple):
    """An operator, its reference, and inputs: float64 arrays by name."""

    actual: Callable[..., paddle.Tensor]
    reference: Callable[..., paddle.Tensor]
    inputs: dict[str, np.ndarray]


def check_operator(context, name, dtype, bound=None):
    """The errors of an operator's result and of its gradients in a dtype."""
    operator, bound = operators()[name], bound or BOUNDS[dtype]
    with on_cpu(context):  # the reference gets the values that the operator gets, rounded ones
        rounded = {key: _round(value, dtype) for key, value in operator.inputs.items()}
        expected = _evaluate(operator.reference, rounded, "float64")
    half = dtype != "float32"
    with paddle.amp.auto_cast(enable=half, level="O1", dtype=dtype if half else "float16"):
        actual = _evaluate(operator.actual, rounded, dtype)
    errors = {key: relative_error(actual[key], value) for key, value in expected.items()}
    return within(errors, bound)


def check_label_map(context):
    """The share of the pixels whose class differs from the argmax of the resized logits."""
    logits = _random(1, 19, 32, 40)
    size = 130, 150
    with on_cpu(context):
        full = F.interpolate(paddle.to_tensor(logits), size, mode="bilinear")
        expected = full[0].argmax(axis=0).numpy()
    weights = [ops.linear_weights(*lengths) for lengths in zip(logits.shape[2:], size)]
    small = paddle.to_tensor(logits[0], dtype="float32")
    actual = ops.label_map([[ops.WindowLogits.from_logits(small, *weights)]]).numpy()
    share = float((actual != expected).mean())
    bound = f"≤ {MAX_DIFFERENT_LABELS:.1%} of the pixels"
    return Result(share <= MAX_DIFFERENT_LABELS, f"{share:.2%} differ", bound, {"share": share})


def check_drop_path(context):
    """Each sample is dropped, or kept and divided by the keep rate; so is its gradient."""
    samples, rate = 4000, 0.25
    layer = ops.DropPath(rate)
    worst, kept = 0.0, 0
    x = paddle.ones([samples, 2, 3])
    x.stop_gradient = False
    y = layer(paddle.zeros_like(x), x)
    y.sum().backward()
    for values in (y.numpy(), x.grad.numpy()):
        kept_values = values[values != 0]
        worst = max(worst, float(np.abs(kept_values * (1 - rate) - 1).max(initial=0)))
        whole = (values != 0).reshape(samples, -1)
        worst = max(worst, float((whole.any(1) != whole.all(1)).any()))
        kept = float(whole.all(1).mean())
    passed = worst <= BOUNDS["float32"] and abs(kept - (1 - rate)) < 0.03  # 4 standard deviations
    measured = f"{kept:.3f} kept, error {worst:.1e}"
    bound = f"{1 - rate} ± 0.03, ≤ {BOUNDS['float32']:.0e}"
    return Result(passed, measured, bound, {"kept": kept, "error": worst})


def check_attention_kernel(context, dtype):
    """The operators that attention runs: FlashAttention on Ampere and later, which alone has it."""
    inputs = operators()["attention"].inputs.values()
    q, k, v = (paddle.to_tensor(array, dtype=dtype) for array in inputs)
    trace = context.folder / f"attention_{dtype}.json"
    cpu = [profiler.ProfilerTarget.CPU]  # which has the names of the operators that it launches
    with profiler.Profiler(targets=cpu, on_trace_ready=lambda p: p.export(str(trace), "json")):
        ops.scaled_dot_product_attention(q, k, v, 32**-0.5)
    events = r'"(\w+) (?:kernel launch|compute)\b'  # of Paddle 3 and of Paddle 2
    names = re.findall(events, trace.read_text(encoding="utf-8"))
    is_flash = any(name.startswith("flash_attn") for name in names)
    expected = paddle.device.cuda.get_device_capability() >= (8, 0)
    bound = "flash_attn" if expected else "not flash_attn"
    used = [name for name in dict.fromkeys(names) if name not in ("cast", "transpose")]
    return Result(is_flash == expected, ", ".join(used), bound, {"operators": names})


def operators():
    """The operators that have a gradient, by name."""
    labels = np.random.default_rng(1).integers(0, 19, [2, 61, 64])
    weights = np.random.default_rng(2).random([2, 61, 64])

    def cross_entropy(logits):
        weight = paddle.to_tensor(weights, dtype="float32")
        return ops.upsampled_cross_entropy(logits, paddle.to_tensor(labels), weight)

    def cross_entropy_reference(logits):
        full = F.interpolate(logits, labels.shape[1:], mode="bilinear")
        loss = F.cross_entropy(full, paddle.to_tensor(labels), axis=1, reduction="none")
        weight = paddle.to_tensor(weights.astype("float32"), dtype="float64")
        return (loss.reshape(labels.shape) * weight).sum()

    def attention_reference(q, k, v):
        q, k, v = (x.transpose([0, 2, 1, 3]) for x in (q, k, v))
        scores = paddle.matmul(q, k, transpose_y=True) * 32**-0.5
        return paddle.matmul(F.softmax(scores), v).transpose([0, 2, 1, 3])

    def to_map(x, weight, bias):
        return F.linear(x, weight, bias).transpose([0, 2, 1]).reshape([2, -1, 8, 9])

    def gelu_linear(x, weight, bias):
        return F.linear(F.gelu(x).flatten(2).transpose([0, 2, 1]), weight, bias)

    def convolution(**options):
        return lambda x, weight, bias: F.conv2d(x, weight, bias, **options)

    def linear_inputs(*shape):
        return {"x": _random(*shape), "weight": _random(48, 32) / 7, "bias": _random(32)}

    depthwise = {"x": _random(2, 48, 16, 16), "weight": _random(48, 1, 3, 3), "bias": _random(48)}
    patches = {"x": _random(2, 3, 32, 32), "weight": _random(32, 3, 7, 7), "bias": _random(32)}
    classifier = {"x": _random(2, 48, 8, 9), "weight": _random(32, 48, 1, 1), "bias": _random(32)}
    return {
        "resize": Operator(
            lambda x: ops.resize_bilinear(x, (31, 40)),
            lambda x: F.interpolate(x, (31, 40), mode="bilinear"),
            {"x": _random(2, 16, 13, 17)},
        ),
        "cross-entropy": Operator(
            cross_entropy, cross_entropy_reference, {"logits": 3 * _random(2, 19, 16, 16)}
        ),
        "attention": Operator(
            lambda q, k, v: ops.scaled_dot_product_attention(q, k, v, 32**-0.5),
            attention_reference,
            {"q": _random(2, 64, 2, 32), "k": _random(2, 16, 2, 32), "v": _random(2, 16, 2, 32)},
        ),
        "linear layer": Operator(_layer(ops.Linear, 48, 32), F.linear, linear_inputs(2, 72, 48)),
        "linear layer to a map": Operator(
            lambda x, **parameters: _layer(ops.LinearToMap, 48, 32)(x, 8, 9, **parameters),
            to_map,
            linear_inputs(2, 72, 48),
        ),
        "GELU and linear layer": Operator(
            _layer(ops.GeluLinear, 48, 32, 0.0), gelu_linear, linear_inputs(2, 48, 8, 9)
        ),
        "patch embedding": Operator(
            _layer(ops.Conv2D, 3, 32, 7, 4, padding=3), convolution(stride=4, padding=3), patches
        ),
        "depthwise convolution": Operator(
            _layer(ops.Conv2D, 48, 48, 3, padding=1, groups=48),
            convolution(padding=1, groups=48),
            depthwise,
        ),
        "classifier": Operator(_layer(ops.DropoutConv1x1, 48, 32, 0.0), convolution(), classifier),
    }


def _layer(make, *arguments, **options):
    """A function of a layer's inputs and parameters, which get the gradients."""

    def function(x, *size, weight, bias):
        layer = make(*arguments, **options)
        layer._parameters.update(weight=weight, bias=bias)
        return layer(x, *size)

    return function


def _evaluate(function, arrays, dtype):
    """The result of a function and its gradients at a fixed upstream gradient, float64 arrays."""
    tensors = {}
    for name, array in arrays.items():
        is_parameter = name in PARAMETERS and dtype != "float64"
        tensors[name] = paddle.to_tensor(array, dtype="float32" if is_parameter else dtype)
        tensors[name].stop_gradient = False
    result = function(**tensors)
    upstream = np.random.default_rng(3).standard_normal(result.shape)
    upstream = paddle.to_tensor(_round(upstream, "bfloat16"), dtype=result.dtype)
    paddle.autograd.backward([result], [upstream.reshape(result.shape)])
    check_gradients(tensors.items())
    values = {"result": result, **{f"gradient of {name}": x.grad for name, x in tensors.items()}}
    return {name: value.astype("float64").numpy() for name, value in values.items()}


def check_gradients(tensors):
    """Raise a ValueError if one of the pairs of name and tensor has no gradient."""
    missing = [name for name, tensor in tensors if tensor.grad is None]
    if missing:
        raise ValueError(f"no gradient of {', '.join(missing)}")


def _random(*shape):
    return np.random.default_rng(len(shape) + sum(shape)).standard_normal(shape)


def _round(array, dtype):
    """Round a float64 array to a dtype's values; on the CPU."""
    with paddle.no_grad():
        tensor = paddle.to_tensor(array, place=paddle.CPUPlace())
        return tensor.astype(dtype).astype("float64").numpy()


def relative_error(actual, expected):
    """|actual - expected| / |expected| of arrays, in Euclidean norms."""
    scale = float(np.linalg.norm(expected))
    return float(np.linalg.norm(actual - expected)) / (scale if scale else 1.0)


def within(errors, bound):
    """The ``Result`` of errors by name; NaN is beyond every bound."""
    worst = max(errors, key=lambda name: errors[name] if errors[name] == errors[name] else np.inf)
    passed = all(error <= bound for error in errors.values())
    return Result(passed, f"error {errors[worst]:.1e} ({worst})", f"≤ {bound:.0e}", errors)


@contextlib.contextmanager
def on_cpu(context):
    """Compute on the CPU, and then on the context's device again."""
    paddle.set_device("cpu")
    try:
        yield
    finally:
        paddle.set_device(context.device)

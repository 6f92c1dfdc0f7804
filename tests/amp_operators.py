"""The dtype of every operator of a training step in mixed precision, without a GPU.

Paddle's automatic casts do nothing on a CPU, except while a static program is built: there they are
the same code and lists as on a GPU. ``count_operators`` builds B0's forward pass, loss and backward
pass so, without running it. Paddle accepts bfloat16 for this on a CPU, but not float16.

    python tests/amp_operators.py    # the table of docs/performance.md
"""

import contextlib
import re
from collections import Counter
from unittest import mock

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle.nn.layer import norm

from paddleseg_segformer.engine.options import TrainOptions
from paddleseg_segformer.engine.train_step import TrainStep
from paddleseg_segformer.models import CrossEntropyLoss, SegFormer, losses, segformer
from paddleseg_segformer.ops import attention, resize

HALF = "bfloat16"


class Operators(Counter):
    """Numbers of operators by (name, "forward" or "backward", dtype of the first float operand)."""

    attention_inputs = frozenset()  # dtypes

    def of(self, name, direction="forward"):
        """The numbers by dtype of one operator."""
        found = {key[2]: n for key, n in self.items() if key[:2] == (name, direction)}
        return dict(sorted(found.items()))


def count_operators(amp=None, **model_options):
    """The ``Operators`` of a step of B0, with the arguments of ``auto_cast`` of training."""
    amp = amp or training_amp()
    attention_inputs, batch_norm_inputs = set(), set()
    float32_batch_norm = norm.batch_norm

    def batch_norm(x, *arguments, **options):
        """In half precision it has no kernel on a CPU. AMP casts by the dtype of x alone."""
        batch_norm_inputs.add(dtype_name(x))
        with paddle.amp.auto_cast(enable=False):
            return float32_batch_norm(x.astype("float32"), *arguments, **options).astype(x.dtype)

    def has_fused_kernel(q):  # the operators of its replacement have kernels on a CPU
        attention_inputs.add(dtype_name(q))
        return False

    with static_mode(), contextlib.ExitStack() as patches:
        patch = mock.patch.object
        patches.enter_context(patch(attention, "_has_fused_kernel", has_fused_kernel))
        patches.enter_context(patch(F, "softmax_", softmax_in_place))
        patches.enter_context(patch(norm, "batch_norm", batch_norm))
        patches.enter_context(patch(segformer, "resize_and_sum", resize_by_operators))
        patches.enter_context(patch(losses, "upsampled_cross_entropy", loss_by_operators))
        program = paddle.static.Program()
        with paddle.static.program_guard(program, paddle.static.Program()):
            model = SegFormer(19, "B0", **model_options)
            images = paddle.static.data("images", [2, 3, 64, 64], "float32")
            labels = paddle.static.data("labels", [2, 64, 64], "int64")
            with paddle.amp.auto_cast(**amp):
                (logits,) = model(images, resize_logits=False)
                loss = CrossEntropyLoss()(logits, labels)
            parameters = [p for p in model.parameters() if not p.stop_gradient]
            assert None not in paddle.static.gradients(loss, parameters)
        operators = Operators()
        for op in program.global_block().ops:
            name, grad = re.fullmatch(r"\w+\.(\w+?)_?(_grad)?", op.name()).groups()
            dtypes = map(dtype_name, [*op.operands_source(), *op.results()])
            floats = [dtype for dtype in dtypes if dtype and "float" in dtype]
            if floats:
                operators[name, "backward" if grad else "forward", floats[0]] += 1
        for direction in ("forward", "backward") if HALF in batch_norm_inputs else ():
            operators["batch_norm", direction, HALF] = operators.pop(
                ("batch_norm", direction, "float32")
            )
        operators.attention_inputs = attention_inputs
        return operators


def training_amp():
    """The arguments of ``auto_cast`` with ``--precision bf16``."""
    with mock.patch.object(paddle, "get_device", lambda: "gpu:0"):
        options = TrainOptions(precision="bf16", num_workers=0)
        model = paddle.nn.Linear(1, 1)
        optimizer = paddle.optimizer.SGD(parameters=model.parameters())
        losses = {"types": [CrossEntropyLoss()], "coef": [1.0]}
        return TrainStep(model, losses, optimizer, options, None).amp


@contextlib.contextmanager
def static_mode():
    paddle.enable_static()
    try:
        yield
    finally:
        paddle.disable_static()


def dtype_name(value):
    """``"float32"``; None for a list of values or an empty one."""
    try:
        return str(value.dtype).rsplit(".", 1)[-1]
    except ValueError:
        return None


def resize_by_operators(maps, size, align_corners=False):
    """``resize_and_sum``'s forward pass, which a static program cannot hold as a PyLayer."""

    def weights(sources, target):
        matrices = [resize.linear_weights(source, target, align_corners) for source in sources]
        matrix = np.concatenate(matrices, axis=1).astype(np.float32)
        return paddle.assign(matrix).astype(maps[0].dtype)

    heights, widths = zip(*(x.shape[2:] for x in maps))
    columns = [weights([width], size[1]) for width in widths]
    with paddle.amp.auto_cast(enable=False):
        return resize._sum_of_products(maps, weights(heights, size[0]), columns)


def softmax_in_place(x):
    """AMP casts no tensor that an operator changes; a static program has no such operators."""
    with paddle.amp.auto_cast(enable=False):
        return F.softmax(x)


def loss_by_operators(logits, labels, weights):
    """``upsampled_cross_entropy``'s operators on a GPU."""
    with paddle.amp.auto_cast(enable=False):
        full = resize_by_operators([logits], labels.shape[1:])
        loss = F.cross_entropy(full, labels, axis=1, reduction="none")
        return (loss.reshape(weights.shape) * weights).sum()


# Those that compute; not casts, views, copies, constants and random numbers.
SHOWN = {
    "conv2d": "convolution",
    "depthwise_conv2d": "depthwise convolution",
    "matmul": "matrix product",
    "mv": "matrix-vector product",
    "gelu": "GELU",
    "relu": "ReLU",
    "batch_norm": "BatchNorm",
    "layer_norm": "LayerNorm",
    "softmax": "softmax",
    "cross_entropy_with_softmax": "cross-entropy",
    "add": "addition",
    "multiply": "multiplication",
    "sum": "sum",
}


def table(operators):
    """Lines of a Markdown table."""
    yield "| Operator | Forward, half | Forward, float32 | Backward, half | Backward, float32 |"
    yield "|---|---|---|---|---|"
    for name, title in SHOWN.items():
        found = [operators.of(name, direction) for direction in ("forward", "backward")]
        cells = [str(of.get(dtype, 0)) for of in found for dtype in (HALF, "float32")]
        yield f"| {title} (`{name}`) | {' | '.join(cells)} |"


if __name__ == "__main__":
    print("\n".join(table(count_operators())))

"""Dtypes of a step's operators in mixed precision, by Paddle's own automatic casts."""

import re
from pathlib import Path

import amp_operators
import paddle
import pytest
from amp_operators import HALF
from paddle.amp.amp_lists import black_list, white_list

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        paddle.__version__.startswith("2."), reason="Paddle 2 casts in no program without a GPU"
    ),
]
DOCUMENTATION = Path(__file__).parents[2] / "docs/performance.md"

IN_HALF = "conv2d", "depthwise_conv2d", "gelu", "batch_norm", "relu"
IN_FLOAT32 = "layer_norm", "softmax", "cross_entropy_with_softmax", "multiply", "bernoulli"


@pytest.fixture(scope="module")
def operators():
    return amp_operators.count_operators()


def test_dtypes_of_the_operators(operators):
    for direction in ("forward", "backward"):
        for name in IN_HALF:
            assert list(operators.of(name, direction)) == [HALF], (name, direction)
        for name in IN_FLOAT32:
            assert set(operators.of(name, direction)) <= {"float32"}, (name, direction)
        # All but the loss's two.
        assert operators.of("matmul", direction)["float32"] == 2, direction
    assert operators.attention_inputs == {HALF}  # of FlashAttention, on GPUs that have it
    assert operators.of("add")["float32"] == 16  # the residual ones


def test_stage_projections_with_batch_norm():
    operators = amp_operators.count_operators(stage_projection="conv_bn_relu")
    for name in IN_HALF:
        assert list(operators.of(name)) == [HALF], name


def test_depthwise_convolutions_need_our_list():
    amp = amp_operators.training_amp()
    assert amp.pop("custom_white_list") == {"depthwise_conv2d"}
    operators = amp_operators.count_operators(amp)
    assert list(operators.of("depthwise_conv2d")) == list(operators.of("gelu")) == ["float32"]


def test_float16_has_the_same_dtypes(operators):
    """Paddle's lists of the two types differ only in operators that are not here."""
    names = {name for name, *_ in operators}
    for lists in (white_list(), black_list()):
        assert not names & (lists["float16"]["O1"] ^ lists["bfloat16"]["O1"])


@pytest.mark.skipif(not paddle.__version__.startswith("3.3"), reason="the table is Paddle 3.3's")
def test_table_in_the_documentation(operators):
    rows = [line for line in amp_operators.table(operators) if "`" in line]
    documented = re.findall(r"(?m)^\| .*\(`\w+`\) \| \d.*$", DOCUMENTATION.read_text("utf-8"))
    assert documented == rows

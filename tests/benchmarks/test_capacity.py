"""benchmarks/capacity.py, against the memory that Paddle allocates on a CPU."""

import importlib.util
from pathlib import Path
from unittest import mock

import paddle
import pytest

from paddleseg_segformer import SegFormer
from paddleseg_segformer.models import VARIANTS

path = Path(__file__).parents[2] / "benchmarks" / "capacity.py"
spec = importlib.util.spec_from_file_location("capacity", path)
capacity = importlib.util.module_from_spec(spec)
spec.loader.exec_module(capacity)


def allocated_by_forward(model, batch_size, size):
    """Bytes that are kept after a forward pass for the backward pass, and the image and logits."""
    images = paddle.randn([batch_size, 3, size, size])
    before = paddle.base.core.host_memory_stat_current_value("Allocated", 0)
    (logits,) = model(images, resize_logits=False)
    after = paddle.base.core.host_memory_stat_current_value("Allocated", 0)
    del logits
    return after - before


@pytest.mark.parametrize("name", ["B0", "B2"])
def test_bytes_kept_for_the_backward_pass(name):
    """Those of a second image, as allocated in the form for GPUs."""
    model = SegFormer(capacity.CLASSES, name)
    with mock.patch.object(paddle.base.core.Place, "is_cpu_place", lambda self: False):
        one, two = (allocated_by_forward(model, n, 128) for n in (1, 2))
    image = 4 * 3 * 128**2  # allocated before
    computed = capacity.saved_bytes(capacity.training_step(VARIANTS[name], 128).operators, "fp32")
    assert two - one == pytest.approx(computed - image, rel=0.02)


def test_micro_batches_that_fit():
    """The fewest micro-batches; recompute only where one image does not fit without."""
    b5 = VARIANTS["B5"]
    of_8, of_4 = (capacity.memory(b5, 640, n, "fp32") for n in (8, 4))
    card = capacity.Card(memory=(of_8 + of_4) / 2, bandwidth=1, flops={})
    assert capacity.fit(b5, 640, card, "fp32") == (4, False)
    least = capacity.memory(b5, 640, 1, "fp32", recompute=True)
    assert capacity.fit(b5, 640, card._replace(memory=least), "fp32") == (1, True)
    assert capacity.fit(b5, 640, card._replace(memory=least - 1), "fp32") is None


def test_time_of_the_slower_of_arithmetic_and_memory():
    """With one limit far away, that of the other: three times the forward pass, and AdamW."""
    b0, operators = VARIANTS["B0"], capacity.training_step(VARIANTS["B0"], 64).operators
    card = capacity.Card(memory=0, bandwidth=1e30, flops={"tf32": 1e9})
    macs = sum(op.macs for op in operators)
    assert capacity.seconds(b0, 64, 2, card, "tf32") == pytest.approx(12 * macs / 1e9)
    card = capacity.Card(memory=0, bandwidth=1e9, flops={"tf32": 1e30})
    moved = 4 * sum(op.moved + op.moved_float32 for op in operators)
    expected = (6 * moved + 28e6 * b0.params_millions) / 1e9
    assert capacity.seconds(b0, 64, 2, card, "tf32") == pytest.approx(expected)

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


def test_recommended_flags():
    """The first that fit, in the order of their cost: fewer micro-batches, then recompute."""
    b5 = VARIANTS["B5"]
    sizes = [capacity.memory(b5, 640, n, "fp32") for n in (8, 4)]
    card = capacity.Card(memory=(sizes[0] + sizes[1]) / 2, bandwidth=1, flops={})
    assert capacity.flags(b5, 640, card, "fp32") == "--batch_size 4 --grad_accum_steps 4"
    with_recompute = capacity.memory(b5, 640, 1, "fp32", recompute=True)
    card = card._replace(memory=with_recompute)
    expected = "--batch_size 1 --grad_accum_steps 16 --opts model.backbone.recompute=true"
    assert capacity.flags(b5, 640, card, "fp32") == expected
    assert capacity.flags(b5, 640, card._replace(memory=with_recompute - 1), "fp32") is None

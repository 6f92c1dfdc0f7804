"""benchmarks/count_kernels.py, and the kernel calls and reads of a training step."""

import paddle
import paddle.nn.functional as F
import pytest
from reference import TINY
from run_tools import ROOT

from paddleseg_segformer import CrossEntropyLoss, MixVisionTransformer, SegFormer
from paddleseg_segformer.engine.options import TrainOptions
from paddleseg_segformer.engine.train_step import TrainStep

pytestmark = pytest.mark.integration


@pytest.fixture
def count_kernels(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import count_kernels

    return count_kernels


def test_kernels_views_and_reads_are_counted(count_kernels):
    """A known step: relu of a reshaped product, its gradient, and two reads of 4 bytes and one."""
    model = paddle.nn.Linear(3, 2, bias_attr=False)
    optimizer = paddle.optimizer.SGD(0.1, parameters=model.parameters())

    def step(batch):
        x = paddle.to_tensor(batch["label"][0, :4, :3].astype("float32"))
        loss = F.relu(model(x).reshape([8])).sum()
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        return float(loss), bool(loss > 0)

    found = count_kernels.count(lambda _: (model, optimizer, step), None, 2)
    assert (found["bytes read"], found["bytes uploaded"]) == (4 + 1, 4 * 3 * 4)
    assert {key[1]: n for key, n in found.items() if key[0] == "forward"} == {"matmul": 1}
    assert (found["forward"], found["optimizer"], found["norm"], found["reads"]) == (1, 1, 0, 2)
    assert found["views"] == 2  # reshape and its gradient
    assert found["backward"] >= 3  # of matmul, relu and sum


@pytest.mark.parametrize("grad_accum_steps, reads", [(1, 1), (3, 2)])
def test_gradient_accumulation_reads_the_numbers_of_valid_pixels_at_once(
    grad_accum_steps, reads, count_kernels
):
    def build(_):
        backbone = MixVisionTransformer(**TINY)
        model, optimizer = count_kernels.with_optimizer(SegFormer(5, backbone, 16))
        options = TrainOptions(grad_accum_steps=grad_accum_steps)
        losses = {"types": [CrossEntropyLoss()], "coef": [1.0]}
        step = TrainStep(model, losses, optimizer, options, None)

        def run(batch):
            labels = batch["label"] % 5
            step([count_kernels.to_device({**batch, "label": labels})] * grad_accum_steps, 1)

        return model, optimizer, run

    assert count_kernels.count(build, None, 1)["reads"] == reads


def test_a_step_waits_for_the_device_once_and_the_loss_does_not_grow_with_the_batch(count_kernels):
    found = [count_kernels.count(count_kernels.ours, "B0", n) for n in (1, 4, 5)]
    assert [counts["reads"] for counts in found] == [1, 1, 1]
    one, group, two_groups = found
    assert one["loss and checks"] == group["loss and checks"]
    assert 0 < two_groups["loss and checks"] - group["loss and checks"] < 15
    for phase in ("norm", "optimizer"):  # and not one for each parameter
        assert max(counts[phase] for counts in found) < 5

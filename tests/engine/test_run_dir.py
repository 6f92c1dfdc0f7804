"""The checkpoints that a run keeps, and the disk space that they need."""

from types import SimpleNamespace

import paddle
import pytest
from training_runs import draw_scenes, run, tiny_config

from paddleseg_segformer.engine import run_dir
from paddleseg_segformer.engine.options import TrainOptions
from paddleseg_segformer.errors import InputError


@pytest.mark.integration
def test_a_run_keeps_the_newest_checkpoints(tmp_path):
    config = tiny_config(draw_scenes(tmp_path), iters=5)
    run(config, tmp_path / "run", save_interval=1, keep_checkpoint_max=2)
    kept = [path.name for path in run_dir.list_checkpoints(tmp_path / "run")]
    assert kept == ["iter_4", "iter_5"]


@pytest.mark.parametrize(
    "size, text",
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (65536, "65.5 kB"), (2.5e9, "2.5 GB")],
)
def test_sizes_keep_three_digits(size, text):
    assert run_dir.size_text(size) == text


# A model of 30 floats, 20 of them trainable: 120 bytes of weights, as much for an average, and 160
# of Adam's moments. The best models have weights only.
@pytest.mark.parametrize(
    "iters, options, needed",
    [
        (10, {}, 4 * 280 + 120),  # after the iterations 3, 6, 9 and 10
        (9, {}, 3 * 280 + 120),
        (10, {"use_ema": True}, 4 * 400 + 240),
        (10, {"keep_checkpoint_max": 1}, 2 * 280 + 120),  # one more while the next is written
        (10, {"keep_checkpoint_max": 0}, 4 * 280 + 120),
        (10, {"resume": True}, 3 * 280 + 120),  # one exists
    ],
)
def test_needed_disk_space(iters, options, needed, tmp_path, monkeypatch):
    model = paddle.nn.Sequential(paddle.nn.Linear(4, 4), paddle.nn.Linear(4, 2))
    model[1].weight.stop_gradient = model[1].bias.stop_gradient = True
    options = TrainOptions(save_dir=str(tmp_path), save_interval=3, **options)
    monkeypatch.setattr(run_dir, "count_checkpoints", lambda folder: 1)
    free = SimpleNamespace(free=needed)
    monkeypatch.setattr(run_dir.shutil, "disk_usage", lambda folder: free)
    run_dir.check_disk_space(options, iters, model)
    free.free -= 1
    with pytest.raises(InputError, match=r"are free, but \d checkpoints of \d{3} B and"):
        run_dir.check_disk_space(options, iters, model)

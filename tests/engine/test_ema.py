"""EMA (exponential moving average of the weights) against its recurrence in NumPy.

The decay at step t is min(1 - 1 / (t + 1), 0.999). Until it reaches 0.999, the average is thus the
mean of the initial weights and of those after each step.
"""

import copy

import numpy as np
import paddle
import pytest
from training_runs import assert_same_weights, run, tiny_config

from paddleseg_segformer import CrossEntropyLoss
from paddleseg_segformer.config import build
from paddleseg_segformer.engine import checkpoint, validate
from paddleseg_segformer.engine.metric_writer import read_lines
from paddleseg_segformer.engine.options import TrainOptions
from paddleseg_segformer.engine.train_step import TrainStep
from paddleseg_segformer.engine.trainer import Trainer
from paddleseg_segformer.weights import read_saved_dict

pytestmark = pytest.mark.integration
ITERS = 4


@pytest.fixture(scope="module")
def trained(scenes, tmp_path_factory):
    """The folder of a run that saves each step, and the weights before it and after each step."""
    save_dir = tmp_path_factory.mktemp("run")
    # So large a learning rate that the average has other scores than the model.
    config = tiny_config(scenes, iters=ITERS, learning_rate=0.05)
    options = {"use_ema": True, "do_eval": True, "save_interval": 1}
    trainer = Trainer(config, TrainOptions(save_dir=str(save_dir), **options), None)
    weights = [arrays(trainer.step.model)]
    trainer.run()
    for i in range(1, ITERS + 1):
        weights.append(read_saved_dict(save_dir / f"iter_{i}/model.pdparams"))
    return save_dir, weights


def arrays(model):
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def mean(weights):
    return {k: np.mean([w[k] for w in weights], axis=0, dtype="float64") for k in weights[0]}


def test_the_average_is_the_mean_of_the_weights_so_far(trained):
    """BatchNorm's statistics included."""
    save_dir, weights = trained
    assert any(name.endswith("_variance") for name in weights[0])
    for i in range(1, ITERS + 1):
        found = save_dir / f"iter_{i}/ema_model.pdparams"
        assert_same_weights(found, mean(weights[: i + 1]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("iteration, decay", [(998, 998 / 999), (999, 0.999), (50_000, 0.999)])
def test_the_decay_has_an_upper_limit(iteration, decay, scenes):
    model, optimizer = build(tiny_config(scenes, learning_rate=0.5), "model", "optimizer")
    losses = {"types": [CrossEntropyLoss()], "coef": [1.0]}
    step = TrainStep(model, losses, optimizer, TrainOptions(), copy.deepcopy(model))
    for value in step.ema_model.state_dict().values():
        paddle.assign(value + 1, value)
    before = arrays(step.ema_model)
    images, labels = paddle.randn([2, 3, 64, 64]), paddle.zeros([2, 64, 64], dtype="int32")
    step([{"img": images, "label": labels}], iteration)
    after = arrays(step.model)
    expected = {k: decay * before[k] + (1 - decay) * after[k] for k in before}
    assert_same_weights(arrays(step.ema_model), expected, rtol=1e-6, atol=2e-7)


def test_model_and_average_are_evaluated_each(trained, scenes):
    """A line of train.jsonl has the scores of the weights in the file."""
    save_dir, _ = trained
    scores = {"eval": [], "ema_eval": []}
    for line in read_lines(save_dir):
        if line["kind"] in scores:
            name = "model" if line["kind"] == "eval" else "ema_model"
            path = save_dir / f"iter_{line['iteration']}/{name}.pdparams"
            expected = validate(tiny_config(scenes), path)
            assert (line["miou"], line["accuracy"]) == (expected.miou, expected.accuracy)
            scores[line["kind"]].append(line["accuracy"])
    assert len(scores["eval"]) == ITERS and scores["eval"] != scores["ema_eval"]


def test_best_models_hold_the_weights_with_the_best_score(trained):
    save_dir, weights = trained
    for prefix, averaged in (("", False), ("ema_", True)):
        lines = [line for line in read_lines(save_dir) if line["kind"] == f"{prefix}eval"]
        best = max(lines, key=lambda line: line["miou"])["iteration"]
        folder = save_dir / f"{prefix}best_model"
        assert checkpoint.verify(folder)["iteration"] == best
        expected = mean(weights[: best + 1]) if averaged else weights[best]
        assert_same_weights(
            folder / f"{prefix}model.pdparams", expected, rtol=1e-5 * averaged, atol=1e-6 * averaged
        )


def test_a_run_resumed_without_an_average_starts_it_from_the_weights(scenes, tmp_path):
    config = tiny_config(scenes, iters=3)
    config.dic["iters"] = 2
    start = run(config, tmp_path / "without", use_ema=False)
    config.dic["iters"] = 3
    end = run(config, tmp_path / "with", resume_model=str(start))
    first, second = (read_saved_dict(folder / "model.pdparams") for folder in (start, end))
    expected = {k: 0.75 * first[k] + 0.25 * second[k] for k in first}
    assert_same_weights(end / "ema_model.pdparams", expected, rtol=1e-5, atol=1e-6)

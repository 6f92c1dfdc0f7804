"""The best models and the evaluations of a run, with scores that a script gives."""

import os
import signal

import numpy as np
import pytest
from training_runs import assert_same_weights, tiny_config

from paddleseg_segformer import engine
from paddleseg_segformer.engine import checkpoint
from paddleseg_segformer.engine import trainer as trainer_module
from paddleseg_segformer.engine.metric_writer import read_lines
from paddleseg_segformer.engine.metrics import Scores
from paddleseg_segformer.engine.options import TrainOptions
from paddleseg_segformer.errors import InputError

pytestmark = pytest.mark.integration


@pytest.fixture
def train(scenes, tmp_path, monkeypatch):
    """A function that trains to ``iters`` in one folder, with an evaluation per ``scores``.

    A score is an mIoU, or a signal that arrives during the evaluation. Returns the folder.
    """

    def train(iters, scores, **options):
        left = list(scores)

        def evaluate(model, dataset, test_config, observe=None):
            score = 0.0 if observe is None else left.pop(0)  # the former before training
            if isinstance(score, signal.Signals):
                os.kill(os.getpid(), score)
            miou = property(lambda _: score)
            return type("Scripted", (Scores,), {"miou": miou})(np.eye(2, dtype=int), ["a", "b"])

        monkeypatch.setattr(trainer_module, "evaluate", evaluate)
        options = {"resume": True, "do_eval": True, "save_interval": 1, **options}
        try:
            config = tiny_config(scenes, iters=iters)
            train.result = engine.train(config, save_dir=str(tmp_path), **options)
        finally:
            assert not left
        return tmp_path

    return train


def assert_best(save_dir, iteration, miou, prefix=""):
    manifest = checkpoint.verify(save_dir / f"{prefix}best_model")
    assert manifest["iteration"] == iteration
    best = manifest["best"]
    assert (best[f"{prefix}iteration"], best[f"{prefix}miou"]) == (iteration, miou)
    name = f"{prefix}model.pdparams"
    assert_same_weights(
        save_dir / f"{prefix}best_model" / name, save_dir / f"iter_{iteration}/{name}"
    )


NAN = float("nan")


@pytest.mark.parametrize(
    "scores, best",
    [([0.5, 0.3], 1), ([0.5, 0.3, 0.6], 3), ([0.5, 0.5], 1), ([0.5, NAN], 1), ([NAN, 0.0], 2)],
)
def test_only_a_better_score_replaces_the_best_model(scores, best, train):
    assert_best(train(len(scores), scores), best, scores[best - 1])


def test_the_best_score_is_kept_on_resuming(train):
    train(2, [0.5, 0.3])
    assert_best(train(3, [0.4]), 1, 0.5)
    assert_best(train(4, [0.6]), 4, 0.6)


def test_the_model_and_its_average_have_a_best_each(train):
    """The scores are the model's and the average's in turn."""
    save_dir = train(3, [0.1, 0.9, 0.5, 0.8, 0.3, 0.7], use_ema=True)
    assert_best(save_dir, 2, 0.5)
    assert_best(save_dir, 1, 0.9, "ema_")
    scores = [line["miou"] for line in read_lines(save_dir) if line["kind"] == "ema_eval"]
    assert scores == [0.9, 0.8, 0.7]


@pytest.mark.parametrize("before", [[], [0.4]], ids=["of the model", "of the average"])
def test_an_evaluation_that_a_stop_cut_off_is_repeated(before, train, caplog):
    caplog.set_level("INFO", "paddleseg_segformer")
    with pytest.raises(SystemExit, match="143"):
        train(4, [0.5, 0.6, *before, signal.SIGTERM], use_ema=True)
    assert "Stopped during evaluation; --resume repeats it" in caplog.text
    save_dir = train(4, [0.7, 0.8, 0.3, 0.2, 0.1, 0.0], use_ema=True)
    assert_best(save_dir, 2, 0.7)
    assert_best(save_dir, 2, 0.8, "ema_")
    lines = [line for line in read_lines(save_dir) if line["kind"].endswith("eval")]
    assert [line["iteration"] for line in lines] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert [line["miou"] for line in lines[2:4]] == [0.7, 0.8]


def test_a_finished_evaluation_is_not_repeated(train):
    train(2, [0.5, 0.3])
    train(3, [0.4])
    train(3, [])


def test_evaluations_are_at_saves_and_at_the_end(train):
    lines = read_lines(train(5, [0.1, 0.2, 0.3], save_interval=2))
    assert [line["iteration"] for line in lines if line["kind"] == "eval"] == [2, 4, 5]


def test_training_returns_the_best_score(train):
    train(3, [0.5, 0.6, 0.3])
    assert train.result == 0.6
    train(4, [0.4])
    assert train.result == 0.6


@pytest.mark.parametrize(
    "limit, scores, best",
    [
        (1, [0.5, 0.4], 0.5),
        (2, [0.5, 0.3, 0.4], 0.5),
        (2, [0.5, 0.3, 0.6, 0.5, 0.4], 0.6),
        (2, [0.5, 0.5, NAN], 0.5),
        (3, [NAN, NAN, NAN], None),
    ],
)
def test_early_stop(limit, scores, best, train, caplog):
    """Each score is used, and no more: the run stops after the last one."""
    caplog.set_level("INFO", "paddleseg_segformer")
    save_dir = train(9, scores, early_stop_intervals=limit)
    last = len(scores)
    text = f"Early stop at iteration {last}: the last {limit} evaluations had no better mIoU"
    assert text in caplog.text
    assert train.result == best and checkpoint.verify(save_dir / f"iter_{last}")
    train(9, [], early_stop_intervals=limit)  # and it is not continued


def test_an_early_stop_counts_evaluations_before_resuming(train, caplog):
    caplog.set_level("INFO", "paddleseg_segformer")
    train(2, [0.5, 0.3], early_stop_intervals=3)
    train(3, [0.4], early_stop_intervals=3)
    assert "Early stop" not in caplog.text
    train(9, [0.2], early_stop_intervals=3)
    assert "Early stop at iteration 4" in caplog.text
    train(9, [0.1, 0.6, 0.5, 0.4, 0.3], early_stop_intervals=5)


def test_a_stopped_evaluation_counts_once(train):
    with pytest.raises(SystemExit, match="143"):
        train(9, [0.5, signal.SIGTERM], early_stop_intervals=2)
    train(9, [0.4, 0.3], early_stop_intervals=2)


def test_an_early_stop_ignores_the_average(train):
    train(9, [0.5, 0.1, 0.4, 0.9], use_ema=True, early_stop_intervals=1)


def test_checkpoints_without_the_count_start_at_0(train):
    folder = train(2, [0.5, 0.3]) / "iter_2"
    manifest = checkpoint.verify(folder)
    del manifest["evaluations_since_best"]
    checkpoint.write_manifest(folder, manifest)
    train(9, [0.4, 0.3], early_stop_intervals=2)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"early_stop_intervals": 0, "do_eval": True}, "must be at least 1."),
        ({"early_stop_intervals": 2}, "counts evaluations, and there are none; add --do_eval."),
    ],
)
def test_an_early_stop_needs_evaluations(options, message):
    with pytest.raises(InputError, match=f"--early_stop_intervals .: {message}"):
        TrainOptions(**options)

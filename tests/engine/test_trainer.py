"""Training: resuming at any iteration gives the same results as an uninterrupted run."""

import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from training_runs import (
    CONFIG,
    ROOT,
    assert_same_weights,
    draw_scenes,
    overrides,
    run,
    state,
    tiny_config,
)

from paddleseg_segformer import device
from paddleseg_segformer.engine import (
    checkpoint,
    dataloader,
    metric_writer,
    run_dir,
    signals,
    train,
)
from paddleseg_segformer.engine import trainer as trainer_module
from paddleseg_segformer.engine.dataloader import BatchReader
from paddleseg_segformer.engine.metric_writer import read_lines
from paddleseg_segformer.engine.signals import StopSignal
from paddleseg_segformer.errors import InputError, RunError
from paddleseg_segformer.weights import read_saved_dict

pytestmark = pytest.mark.integration
# Two steps of two micro-batches of two images are more than an epoch of six images.
ITERS, SEED = 8, 3  # of the uninterrupted run; the seed is also in its checkpoints


@pytest.fixture
def config(scenes):
    return tiny_config(scenes, iters=ITERS)


def start(scenes, save_dir, *more, **keywords):
    """Start a process with the command line of the same run."""
    command = [
        *(sys.executable, "tools/train.py", "--config", CONFIG, "--device", "cpu"),
        *("--iters", ITERS, "--batch_size", 2, "--grad_accum_steps", 2, "--use_ema"),
        *("--seed", SEED),
        *("--save_interval", 2, "--log_iters", 1, "--save_dir", save_dir, *more),
        *("--opts", *overrides(scenes)),
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = dict(os.environ)
    if not device.USER_SET_THREADS:  # then it is Paddle's, and sums depend on how many there are
        environment.pop("OMP_NUM_THREADS", None)
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, env=environment, **pipes, **keywords)


@pytest.fixture(scope="module")
def whole(scenes, tmp_path_factory):
    """The uninterrupted run."""
    save_dir = tmp_path_factory.mktemp("whole")
    run(tiny_config(scenes, iters=ITERS), save_dir, seed=SEED)
    return save_dir


def assert_same_run(folder, expected, logs=True):
    for name in ("model.pdparams", "ema_model.pdparams", "model.pdopt"):
        before, after = (state(f / f"iter_{ITERS}", name) for f in (expected, folder))
        assert_same_weights(after, before)
    if logs:
        assert losses(folder) == losses(expected)


def losses(folder):
    lines = [line for line in read_lines(folder) if line["kind"] == "train"]
    found = {line["iteration"]: line["loss"] for line in lines}
    assert sorted(found) == list(range(1, ITERS + 1))
    return found


# Of 24 samples seen by iteration 6 in epochs of 6, iterations 3 and 6 end one.
@pytest.mark.parametrize("iteration, workers", [(2, 0), (4, 2), (6, 0)])
def test_resuming_at_any_iteration_equals_the_uninterrupted_run(
    iteration, workers, config, whole, tmp_path
):
    resumed = tmp_path / "resumed"
    options = {"resume_model": str(whole / f"iter_{iteration}"), "num_workers": workers}
    run(config, resumed, **options)
    assert_same_run(resumed, whole, logs=False)
    found = {line["iteration"]: line["loss"] for line in read_lines(resumed)}
    assert found == {i: loss for i, loss in losses(whole).items() if i > iteration}


def test_a_frozen_backbone_is_frozen_until_resumed_without_the_option(config, tmp_path, caplog):
    frozen, resumed, thawed = (tmp_path / name for name in ("frozen", "resumed", "thawed"))
    last, half = f"iter_{ITERS}", {"resume_model": str(frozen / "iter_4")}
    run(config, frozen, freeze_backbone=True)
    run(config, resumed, freeze_backbone=True, **half)
    assert "Config changed" not in caplog.text
    run(config, thawed, **half)
    assert "Config changed since the checkpoint: freeze_backbone: True -> False" in caplog.text
    for name in ("model.pdparams", "ema_model.pdparams"):
        before = state(frozen / "iter_4", name)
        expected, same, others = (state(f / last, name) for f in (frozen, resumed, thawed))
        for key, value in before.items():
            in_backbone = key.startswith("backbone.")
            np.testing.assert_array_equal(same[key], expected[key], err_msg=key)
            assert np.array_equal(expected[key], value) == in_backbone, key
            assert not np.array_equal(others[key], value), key
    moments = [key for key in state(frozen / last, "model.pdopt") if "moment" in key]
    assert moments and not any(key.startswith("backbone.") for key in moments)


def test_a_training_set_that_is_not_shuffled(scenes, tmp_path, monkeypatch):
    read, numbered = trainer_module.TrainBatches, []

    def record(reader, sampler, num_workers):
        numbered.extend(item for batch in sampler for item in batch)
        return read(reader, sampler, num_workers)

    monkeypatch.setattr(trainer_module, "TrainBatches", record)
    for iters in (1, 2):
        config = tiny_config(scenes, "train_dataset.shuffle=false", iters=iters)
        run(config, tmp_path, resume=True)
    assert numbered == [(number, number % 6) for number in range(8)]


def test_a_repeated_signal_does_not_interrupt_drawing_the_curves(config, tmp_path, monkeypatch):
    """A launcher repeats its signal while the run that the first one stopped is finishing."""
    draw, later = metric_writer.draw_curves, []

    def repeat(save_dir):
        os.kill(os.getpid(), signal.SIGTERM)
        draw(save_dir)

    monkeypatch.setattr(metric_writer, "draw_curves", repeat)
    before = signal.signal(signal.SIGTERM, lambda *_: later.append("would have ended it"))
    try:
        run(config, tmp_path, save_interval=ITERS)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert later == [] and (tmp_path / "curves.png").exists()


@pytest.mark.cpu_branch("the program that it starts takes the CPU's branches")
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_and_saves(
    number, code, scenes, config, whole, tmp_path, caplog
):
    """At an iteration without a regular save, and with data-loading workers."""
    # In a background job of a script, SIGINT is ignored.
    default = {"preexec_fn": lambda: signal.signal(number, signal.SIG_DFL)}
    process = start(scenes, tmp_path, "--num_workers", 1, "--save_interval", 100, **default)
    for line in process.stdout:
        if "iter: 3/" in line:
            process.send_signal(number)
            break
    log, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    iteration = int(re.search(r"saved at iteration (\d+)", log)[1])
    assert 3 <= iteration < ITERS
    assert [path.name for path in tmp_path.glob("iter_*")] == [f"iter_{iteration}"]
    caplog.set_level("INFO", "paddleseg_segformer")
    run(config, tmp_path, resume=True)
    assert f"Resumed from {tmp_path}/iter_{iteration} at iteration {iteration}" in caplog.text
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize("seconds, code, alive", [(0.0, 143, 1), (2.0, 0, 2)])
def test_a_second_signal_ends_the_process_immediately(seconds, code, alive, tmp_path, monkeypatch):
    """Unless it is within the seconds in which a launcher repeats its signal."""
    monkeypatch.setattr(signals, "REPEAT_SECONDS", seconds)

    def ignore_one_signal():
        with StopSignal():
            for i in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
                (tmp_path / f"alive_{i}").touch()

    process = multiprocessing.get_context("fork").Process(target=ignore_one_signal)
    process.start()
    process.join()
    assert process.exitcode == code
    assert len(list(tmp_path.iterdir())) == alive


def test_a_signal_before_the_first_step_saves_nothing(config, whole, tmp_path, monkeypatch, caplog):
    original = BatchReader.__call__

    def send_signal(self, numbered):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, numbered)

    monkeypatch.setattr(BatchReader, "__call__", send_signal)
    caplog.set_level("INFO", "paddleseg_segformer")
    for iteration in (0, 2):
        options = {"resume_model": str(whole / "iter_2")} if iteration else {}
        options.update(save_interval=100, grad_accum_steps=1)  # one batch, and so one signal
        with pytest.raises(SystemExit, match="143"):
            run(config, tmp_path / f"{iteration}", num_workers=0, **options)
        assert f"SIGTERM: stopped at iteration {iteration}, before the first step" in caplog.text
        assert not run_dir.list_checkpoints(tmp_path / f"{iteration}")


def test_signals_ignored_by_nohup_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.requested == signal.SIGTERM
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_training_continues_if_a_checkpoint_cannot_be_saved(config, whole, tmp_path, caplog):
    """Under a limit on file sizes, as a stand-in for a full disk."""
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (whole / "iter_8/model.pdparams").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, hard))
    try:
        with pytest.raises(RunError, match=r"iter_8: cannot be saved \(.*MB are free\)"):
            run(config, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caplog.text.count("cannot be saved") == ITERS // 2
    assert len(losses(tmp_path)) == ITERS
    assert not list(tmp_path.glob("iter_*"))


def test_fewer_iterations_than_the_checkpoints_is_an_error(config, whole, tmp_path):
    config.dic["iters"] = 1
    with pytest.raises(InputError, match=r"--iters 1: .*iter_4 is at iteration 4 already"):
        run(config, tmp_path / "out", resume_model=str(whole / "iter_4"))
    assert not (tmp_path / "out").exists()


def test_a_lost_registration_of_a_run(config, tmp_path):
    """Killed before the first save after resuming, the run still continues from its checkpoint."""
    config.dic["iters"] = 2
    run(config, tmp_path)
    identity = run_dir.read_run(tmp_path)
    (tmp_path / "run.json").write_bytes(b"")
    run(config, tmp_path, resume=True)
    assert run_dir.read_run(tmp_path) == identity


def test_another_seed_than_the_checkpoints_is_an_error(config, whole, tmp_path):
    with pytest.raises(InputError, match="was trained with 3"):
        run(config, tmp_path, resume_model=str(whole / "iter_2"), seed=1)


def test_initial_weights_and_samples_depend_on_the_seed(config, whole, tmp_path, monkeypatch):
    """The samples' order, and the random state from which each is augmented."""
    config.dic["iters"] = 2
    found, read, orders, states = [], dataloader.read_sample, [], []

    def read_sample(dataset, index):
        orders[-1].append(index)
        states[-1].append(random.getstate()[1][1])
        return read(dataset, index)

    monkeypatch.setattr(dataloader, "read_sample", read_sample)
    for name, seed in (("same", SEED), ("other", 1), ("default", None), ("0", 0)):
        orders.append([]), states.append([])
        run(config, tmp_path / name, seed=seed, num_workers=0)
        found.append([line["loss"] for line in read_lines(tmp_path / name)])
    for values in (found, orders, states):
        assert values[2] == values[3] and len({str(value) for value in values}) == 3
    assert len({state for run in states[:3] for state in run}) == 3 * 8  # no two samples are alike
    assert found[0] == [losses(whole)[i] for i in (1, 2)]


def test_a_changed_config_is_logged(scenes, whole, tmp_path, caplog):
    config = tiny_config(scenes, "optimizer.weight_decay=0.5", iters=3)
    caplog.set_level("WARNING", "paddleseg_segformer")
    run(config, tmp_path, resume_model=str(whole / "iter_2"))
    messages = {record.getMessage() for record in caplog.records}
    text = "Config changed since the checkpoint: optimizer.weight_decay: 0.01 -> 0.5"
    assert text in messages
    assert not any("model." in message for message in messages)


def test_a_run_with_only_nan_steps_saves_and_fails(config, tmp_path, monkeypatch, caplog):
    """Images with NaN: in one step, and then in all."""
    original, files = trainer_module.Trainer._train_step, []

    def spoil(self, micro_batches, meter):
        if self.state.iteration + 1 in spoiled:
            micro_batches[1].arrays["img"][1] = float("nan")
            micro_batches[1] = micro_batches[1]._replace(bad_images=[1])
            files.append(micro_batches[1].files[1])
        original(self, micro_batches, meter)

    monkeypatch.setattr(trainer_module.Trainer, "_train_step", spoil)
    monkeypatch.setattr(trainer_module, "MAX_CONSECUTIVE_SKIPS", 3)
    spoiled = {2, 5, 6, 7, 8}
    with pytest.raises(RunError, match=r"stopped at iteration 7.*learning rate"):
        run(config, tmp_path, save_interval=100)
    manifest = checkpoint.verify(tmp_path / "iter_7")
    assert manifest["skipped"] == {"steps": 4, "samples": 0}
    skips = [line for line in read_lines(tmp_path) if line["kind"] == "skipped_step"]
    assert [line["iteration"] for line in skips] == [2, 5, 6, 7]
    texts = [f"Skipped step {i}: an image is not finite" for i in (2, 5, 6, 7)]
    expected = [f"{text}, with {file}" for text, file in zip(texts, files)]
    assert [line["text"] for line in skips] == expected
    assert "Skipped step 2: " in caplog.text
    with pytest.raises(RunError, match="stopped at iteration 8"):  # and not for ten more
        run(config, tmp_path, save_interval=100, resume=True)
    weights = read_saved_dict(tmp_path / "iter_7/model.pdparams")
    assert all(np.isfinite(value).all() for value in weights.values())


@pytest.mark.parametrize("error", [InputError("a.jpg: is broken"), ValueError("a tool is broken")])
def test_an_error_saves_a_checkpoint(error, config, tmp_path, monkeypatch):
    """An error of a data-loading worker that reads the first sample of the fourth step."""
    original = BatchReader.__call__

    def spoil(self, numbered):
        if numbered[0][0] == 12:
            raise error
        return original(self, numbered)

    monkeypatch.setattr(BatchReader, "__call__", spoil)
    with pytest.raises(type(error), match="is broken") as kept:
        run(config, tmp_path, save_interval=100, num_workers=1)
    assert checkpoint.verify(tmp_path / "iter_3")["iteration"] == 3
    assert kept.traceback and not multiprocessing.active_children()


def test_a_run_from_a_checkpoint_is_a_new_run(config, whole, tmp_path):
    """Resumed before and after its first save; the original checkpoint is left alone."""
    save_dir, origin = tmp_path / "own", tmp_path / "origin"
    shutil.copytree(whole, origin)
    save_dir.mkdir()
    run_dir.start_run(save_dir, origin=origin / "iter_2")
    before = (origin / "iter_2/manifest.json").read_bytes()
    config.dic["iters"] = 4
    run(config, save_dir, resume=True, save_interval=1, do_eval=True)
    assert [path.name for path in run_dir.list_checkpoints(save_dir)] == ["iter_3", "iter_4"]
    shutil.rmtree(save_dir / "iter_4")
    config.dic["iters"] = ITERS
    run(config, save_dir, resume=True)
    lines = [line for line in read_lines(save_dir) if line["kind"] == "train"]
    assert [line["iteration"] for line in lines] == [3, 4, 5, 6, 7, 8]
    assert (origin / "iter_2/manifest.json").read_bytes() == before
    scores = [line for line in read_lines(save_dir) if line["kind"] == "eval"]
    best = max(scores, key=lambda line: line["miou"])["iteration"]
    assert checkpoint.verify(save_dir / "best_model")["iteration"] == best


def test_a_new_run_refuses_the_folder_of_an_earlier_one(config, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    with pytest.raises(InputError, match=r"holds iter_8 of an earlier run; .*--resume"):
        run(config, tmp_path / "run")


@pytest.mark.parametrize("file", ["model.pdparams", "model.pdopt", "notes.txt"])
@pytest.mark.parametrize("name", ["iter_8", "best_model"])
def test_models_trained_by_paddleseg_are_not_overwritten(name, file, config, tmp_path):
    """Nor what is left of them."""
    (tmp_path / name).mkdir()
    weights = tmp_path / name / file
    weights.write_bytes(b"of weeks")
    with pytest.raises(InputError, match=f"holds {name} of an earlier run; .*another folder"):
        run(config, tmp_path, do_eval=True)
    assert weights.read_bytes() == b"of weeks"


def test_two_runs_do_not_write_to_one_folder(config, scenes, tmp_path):
    """A killed run releases the lock, though its workers may survive it by a moment."""
    process = start(scenes, tmp_path, "--iters", 10000, "--num_workers", 2)
    try:
        deadline = time.monotonic() + 120
        while not run_dir.list_checkpoints(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.1)
        with pytest.raises(InputError, match="another run is writing to it"):
            run(config, tmp_path, resume=True)
    finally:
        process.kill()
        process.communicate()
    config.dic["iters"] = checkpoint.verify(run_dir.list_checkpoints(tmp_path)[-1])["iteration"] + 1
    run(config, tmp_path, resume=True)
    assert not (tmp_path / ".lock").exists()


def test_a_signal_does_not_interrupt_saving_the_best_model(config, tmp_path, monkeypatch):
    def send_signal(partial, folder):
        if folder.name == "best_model":
            os.kill(os.getpid(), signal.SIGTERM)
        replace(partial, folder)

    replace = checkpoint._replace
    monkeypatch.setattr(checkpoint, "_replace", send_signal)
    with pytest.raises(SystemExit, match="143"):
        run(config, tmp_path, do_eval=True, use_ema=False)
    assert checkpoint.verify(tmp_path / "best_model")["iteration"] == 2


def test_a_full_disk_at_the_start_is_an_error(config, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(run_dir, "start_run", full)
    with pytest.raises(RunError, match=r"cannot be written to .*quota exceeded"):
        run(config, tmp_path)


def test_a_best_model_that_cannot_be_written_does_not_count(config, tmp_path, monkeypatch):
    def full(folder, states, metadata):
        if Path(folder).name == "best_model" and metadata["iteration"] == 2:
            raise RunError("the disk is full")
        return save(folder, states, metadata)

    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", full)
    config.dic["iters"] = 4
    run(config, tmp_path, do_eval=True)
    best = checkpoint.verify(tmp_path / "best_model")["best"]
    assert best["iteration"] == 4 and best["ema_iteration"] == 2


def test_a_run_without_evaluation_has_no_best_miou(config, tmp_path):
    """Although the checkpoint that it starts from has one."""
    config.dic["iters"] = 2
    done = run(config, tmp_path / "done", do_eval=True, use_ema=False)
    options = {"resume_model": str(done), "do_eval": True, "grad_accum_steps": 2}
    assert train(config, save_dir=str(tmp_path / "own"), **options) is None


def test_a_run_whose_last_checkpoint_cannot_be_written_fails(config, tmp_path, monkeypatch):
    def full(folder, states, metadata):
        if Path(folder).name == "iter_4":
            raise RunError("the disk is full")
        return save(folder, states, metadata)

    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", full)
    config.dic["iters"] = 4
    with pytest.raises(RunError, match="disk is full"):
        run(config, tmp_path, do_eval=True)


@pytest.mark.parametrize("kind", ["optimizer", "schedule"])
def test_another_optimizer_or_schedule_than_the_checkpoints(kind, scenes, whole, tmp_path):
    change = {
        "optimizer": "optimizer={type: SGD, weight_decay: 0.01, momentum: 0.9}",
        "schedule": "lr_scheduler.learning_rate=1.0e-5",
    }[kind]
    config = tiny_config(scenes, change, iters=ITERS)
    if kind == "optimizer":
        with pytest.raises(InputError, match="was trained with AdamW, not Momentum"):
            run(config, tmp_path, resume_model=str(whole / "iter_6"))
        return
    run(config, tmp_path, resume_model=str(whole / "iter_6"))
    rates = [line["lr"]["base"] for line in read_lines(tmp_path)]
    assert len(rates) == 2 and max(rates) <= 1e-5  # from the first step on


def test_replaced_samples_are_logged_and_counted(tmp_path, caplog):
    draw_scenes(tmp_path)
    broken = tmp_path / "images/training/scene_train_00000002.jpg"
    broken.write_bytes(b"\xff\xd8 not a JPEG")
    config = tiny_config(tmp_path, iters=6)
    caplog.set_level("INFO", "paddleseg_segformer")
    run(config, tmp_path / "out", grad_accum_steps=1, on_bad_sample="skip")
    replaced = [line for line in read_lines(tmp_path / "out") if line["kind"] == "replaced_sample"]
    assert len(replaced) >= 2 and all(str(broken) in line["text"] for line in replaced)
    assert f"{len(replaced)} samples that could not be read" in caplog.text


def test_train_jsonl_is_truncated_at_the_resumed_iteration(config, whole, tmp_path):
    lines = [{"kind": "train", "iteration": i, "loss": 0.0, "lr": {}} for i in (1, 2, 3, 4)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "train.jsonl").write_text(text + '{"kind": "tra')
    run(config, tmp_path, resume_model=str(whole / "iter_2"))
    found = read_lines(tmp_path)
    assert [line["iteration"] for line in found] == list(range(1, ITERS + 1))
    assert found[2]["loss"] > 0
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_training_time_continues_after_resuming(config, whole, tmp_path):
    """Without the time between the runs."""
    before = checkpoint.verify(whole / "iter_6")["seconds"]
    begin = time.monotonic()
    run(config, tmp_path, resume_model=str(whole / "iter_6"))
    after = checkpoint.verify(tmp_path / f"iter_{ITERS}")["seconds"]
    assert before < after <= before + time.monotonic() - begin

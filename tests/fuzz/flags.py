"""Any values of the command line's arguments are accepted, or give an InputError.

Each command parses and checks them, but does no work: what trains, reads a model or draws is
replaced by the check of its options.
"""

import contextlib
import io
import os
import shutil
import sys
import tempfile
from pathlib import Path
from unittest import mock

import atheris

with atheris.instrument_imports(include=["paddleseg_segformer"], enable_loader_override=False):
    from paddleseg_segformer import cli
    from paddleseg_segformer.config import load_config
    from paddleseg_segformer.engine.options import TrainOptions
    from paddleseg_segformer.errors import InputError, RunError
    from paddleseg_segformer.inference import TestConfig
    from paddleseg_segformer.inference.predict_files import find_images

import numpy as np
from fuzzing import check_error, fuzz
from PIL import Image

ROOT = Path(tempfile.mkdtemp())
CONFIG = str(Path(__file__).parents[2] / "configs/quickstart.yaml")
MODEL_CONFIG = load_config(CONFIG)
# The arguments of a valid call, of which some are replaced.
CALLS = {
    "train": ["--config", CONFIG, "--device", "cpu", "--iters", "3", "--learning_rate", "0.1"]
    + ["--batch_size", "2", "--seed", "1", "--num_workers", "0", "--save_interval", "2"]
    + ["--keep_checkpoint_max", "2", "--grad_accum_steps", "1", "--do_eval"]
    + ["--early_stop_intervals", "2", "--save_dir", "out", "--opts", "loss.coef=[1]"],
    "val": ["--config", CONFIG, "--device", "cpu", "--model_path", "model", "--aug_eval"]
    + ["--scales", "1", "--is_slide", "--crop_size", "64", "64", "--stride", "32", "32"]
    + ["--num_workers", "1", "--json", "a.json", "--report", "report"],
    "predict": ["--model_path", "model", "--image_path", "images", "--aug_pred", "--scales", "2"]
    + ["--is_slide", "--crop_size", "64", "64", "--stride", "32", "32", "--device", "cpu"],
    "make_scenes": ["--save_dir", "scenes", "--train", "1", "--val", "1", "--size", "96", "96"]
    + ["--seed", "0"],
    "split_dataset_list": [".", "images", "masks", "--split", "0.5", "0.5", "0", "--seed", "0"]
    + ["--postfix", "", "", "--separator", "|", "--force"],
    "masks_from_colors": [".", "colored", "target", "--force", "--ignore_others"],
}
VALUES = [
    "",
    " ",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "-1",
    "0",
    "1",
    "0.5",
    "9" * 400,
    "9" * 5000,
    "1_0",
]
VALUES += ["a\nb", "\udcff", "x" * 300, "x" * 5000, "é", "-", "--", "=", "a=", "=a", "*", "[", "~"]
VALUES += [
    "images",
    "file",
    "loop",
    "file/a",
    "loop/a",
    "..",
    "--opts",
    "--scales",
    "--help",
    "null",
]


def check_training(config, **options):
    TrainOptions(**options)


def check_evaluation(config, model_path, num_workers, json_path=None, report_dir=None, **options):
    TestConfig.from_config(config, **options)


def check_prediction(model_path, image_path, save_dir, probabilities, config, backend, **options):
    find_images(image_path)
    options.pop("device")
    TestConfig.from_config(MODEL_CONFIG, **options)
    return 1, []


def one_input(data):
    choose = atheris.FuzzedDataProvider(data)
    command = choose.PickValueInList(list(CALLS))
    arguments = list(CALLS[command])
    for _ in range(choose.ConsumeIntInRange(0, 3)):
        position, change = (
            choose.ConsumeIntInRange(0, len(arguments)),
            choose.ConsumeIntInRange(0, 3),
        )
        value = choose.PickValueInList(VALUES)
        if change == 0:
            value = choose.ConsumeUnicode(8).replace("/", "").replace("\0", "")
        elif change == 1:
            value = f"{choose.ConsumeFloat()}"
        arguments[position : position + choose.ConsumeIntInRange(0, 1)] = [value]
    os.chdir(ROOT)
    sys.argv = [f"segformer {command}", *arguments]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            cli._command_module(command).main()
    except InputError as error:
        check_error(error)
    except (RunError, SystemExit) as error:  # SystemExit: of --help
        assert not isinstance(error, SystemExit) or error.code == 0
    except OSError as error:
        assert error.filename is not None  # which the command line reports


def prepare():
    """The files that valid calls need."""
    for folder in ("images", "masks", "colored"):
        (ROOT / folder).mkdir()
        for name in "ab":
            Image.fromarray(np.zeros([4, 4], "uint8")).save(ROOT / f"{folder}/{name}.png")
    (ROOT / "labels.txt").write_text("background 0 0 0\n")
    (ROOT / "file").write_text("text")
    (ROOT / "loop").symlink_to("loop")


if __name__ == "__main__":
    prepare()
    replaced = {"train.train": check_training, "val.validate": check_evaluation}
    replaced |= {"predict.predict": check_prediction, "make_scenes.write_scenes": lambda *_: None}
    for name in CALLS:
        cli._command_module(name)
    with contextlib.ExitStack() as stack:
        for name, function in replaced.items():
            stack.enter_context(mock.patch(f"paddleseg_segformer.cli.{name}", function))
        fuzz(one_input, [bytes([i] * 40) for i in range(0, 256, 8)])
    shutil.rmtree(ROOT)

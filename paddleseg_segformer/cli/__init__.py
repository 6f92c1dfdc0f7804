"""The ``segformer`` command: ``segformer train …`` and its siblings."""

import importlib
import sys
from pathlib import Path

from ..errors import InputError
from ..fs import package_dir
from .common import run

COMMANDS = {
    "train": "Train a model.",
    "val": "Evaluate a trained model: mIoU, accuracy and the IoU of each class.",
    "predict": "Segment images and videos.",
    "export": "Export a trained model for Paddle Inference or as ONNX.",
    "serve": "Start a web demo and JSON API of a trained model.",
    "check_dataset": "Validate every image and label of a data set.",
    "split_dataset_list": "Split images and masks into train.txt, val.txt and test.txt.",
    "masks_from_colors": "Convert color masks to masks of class indices.",
    "convert": "Convert a SegFormer checkpoint of another project.",
    "make_scenes": "Draw a small synthetic data set for trials.",
}
ALIASES = {"masks_from_colours": "masks_from_colors"}


def main(command=None):
    """Run a command and exit; the console script takes its name from the command line."""
    run(lambda: _dispatch(command))


def _dispatch(command):
    if command is None:
        command = sys.argv[1] if len(sys.argv) > 1 else "--help"
        if command in ("-h", "--help"):
            print(_overview())
            return
        program = Path(sys.argv[0])
        name = "python -m paddleseg_segformer" if program.name == "__main__.py" else program.name
        sys.argv = [f"{name} {command}", *sys.argv[2:]]
    command = ALIASES.get(command, command)
    if command not in COMMANDS:
        raise InputError(f"{command}: is not a command; use one of {', '.join(COMMANDS)}.")
    importlib.import_module(f".{command}", __name__).main()


def _overview():
    lines = ["usage: segformer COMMAND …", "", "commands (each has --help):"]
    lines += [f"  {name:20}{summary}" for name, summary in COMMANDS.items()]
    lines += ["", f"Configs for --config configs/… are in {package_dir('configs')}."]
    return "\n".join(lines)

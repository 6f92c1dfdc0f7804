"""The ``segformer`` command, also behind ``python -m paddleseg_segformer`` and ``tools/*.py``.

Each command is a module of this package: the first line of its docstring is the command's summary,
and its ``main()`` parses ``sys.argv`` and calls the library.
"""

import importlib
import sys
from pathlib import Path

from ..errors import InputError
from ..fs import configs_dir
from .common import run

COMMANDS = ("train", "val", "predict", "export", "serve", "check_dataset", "split_dataset_list")
COMMANDS += ("masks_from_colors", "convert", "make_scenes", "doctor")
ALIASES = {"masks_from_colours": "masks_from_colors"}
# Tools of PaddleSeg that have another name here.
REPLACEMENTS = {"analyse": "val with --report DIR, which shows the worst images"}


def main(command=None):
    """Run a command and exit; without ``command``, the first command-line argument names it."""
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
    _command_module(command).main()


def _command_module(command):
    name = ALIASES.get(command, command)
    if name not in COMMANDS:
        use = REPLACEMENTS.get(command, f"one of {', '.join(COMMANDS)}")
        raise InputError(f"{command or repr(command)}: is not a command; use {use}.")
    return importlib.import_module(f".{name}", __name__)


def _overview():
    lines = ["usage: segformer COMMAND …", "", "commands (each has --help):"]
    for name in COMMANDS:
        summary = _command_module(name).__doc__.partition("\n")[0]
        lines.append(f"  {name:20}{summary}")
    lines += ["", f"Configs for --config configs/… are in {configs_dir()}."]
    return "\n".join(lines)

"""``python -m paddleseg_segformer train …``: the tools by name, from any folder."""

import ast
import importlib.util
import sys

from .engine import cli
from .errors import InputError
from .folders import shipped

# setup.py reads the names from here; the other tools serve development.
COMMANDS = (
    "train",
    "val",
    "predict",
    "export",
    "serve",
    "split_dataset_list",
    "masks_from_colours",
    "check_dataset",
    "convert",
    "make_scenes",
)


def overview():
    """What there is, a line each."""
    lines = ["usage: python -m paddleseg_segformer COMMAND …", "", "commands (each has --help):"]
    for name in COMMANDS:
        source = (shipped("tools") / f"{name}.py").read_text(encoding="utf-8")
        lines.append(f"  {name:20}{ast.get_docstring(ast.parse(source))}")
    lines += ["", f"The configs that --config configs/… finds are in {shipped('configs')}."]
    return "\n".join(lines)


def main():
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(overview())
        return
    if name not in COMMANDS:
        raise InputError(f"{name}: is no command; use one of {', '.join(COMMANDS)}.")
    sys.argv = [f"-m paddleseg_segformer {name}", *sys.argv[2:]]
    spec = importlib.util.spec_from_file_location(name, shipped("tools") / f"{name}.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.main()


if __name__ == "__main__":
    cli.run(main)

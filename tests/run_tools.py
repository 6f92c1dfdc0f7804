"""Running the command-line tools and benchmarks."""

import subprocess
import sys
from pathlib import Path

from fork_server import python

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/quickstart.yaml"


def run_tool(name, *arguments, **options):
    """Run ``tools/<name>.py`` or ``benchmarks/<name>.py`` by ``fork_server.python``.

    Returns:
        Its ``CompletedProcess``.
    """
    return python(*tool_command(name, *arguments)[1:], **options)


def run_in_new_process(name, *arguments):
    """The same with the start of the interpreter that a user's call has."""
    command = tool_command(name, *arguments)
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


def tool_command(name, *arguments):
    folder = "tools" if (ROOT / f"tools/{name}.py").exists() else "benchmarks"
    return [sys.executable, f"{folder}/{name}.py", *map(str, arguments)]


def cpu_options(dataset_root, *overrides):
    """Arguments for the CPU, a dataset and further config overrides."""
    roots = [f"{split}_dataset.dataset_root={dataset_root}" for split in ("train", "val")]
    return ["--device", "cpu", "--opts", *roots, *overrides]


def tiny_config(folder, dataset_root, *lines):
    """Write the quick start's config with a model of 4 to 32 channels and batches of two.

    Args:
        folder: Where to write ``tiny.yaml``.
        dataset_root: Folder of scenes.
        lines: More YAML lines.

    Returns:
        The path of the config.
    """
    model = "type: SegFormer, num_classes: 150, embedding_dim: 8"
    backbone = "type: MixVisionTransformer, embed_dims: [4, 8, 20, 32], depths: [1, 1, 1, 1]"
    text = [f"_base_: {CONFIG}", "batch_size: 2"]
    text += [f"{split}_dataset: {{dataset_root: {dataset_root}}}" for split in ("train", "val")]
    text += [f"model: {{_inherited_: false, {model}, backbone: {{{backbone}}}}}", *lines]
    (folder / "tiny.yaml").write_text("\n".join(text) + "\n")
    return folder / "tiny.yaml"

"""Running the command-line tools and benchmarks in a process of their own."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/quickstart.yaml"


def run_tool(name, *arguments):
    """Run ``tools/<name>.py`` or ``benchmarks/<name>.py``; returns its ``CompletedProcess``."""
    command = tool_command(name, *arguments)
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def tool_command(name, *arguments):
    folder = "tools" if (ROOT / f"tools/{name}.py").exists() else "benchmarks"
    return [sys.executable, f"{folder}/{name}.py", *map(str, arguments)]


def cpu_options(dataset_root, *overrides):
    """Arguments for the CPU, a dataset and further config overrides."""
    roots = [f"{split}_dataset.dataset_root={dataset_root}" for split in ("train", "val")]
    return ["--device", "cpu", "--opts", *roots, *overrides]

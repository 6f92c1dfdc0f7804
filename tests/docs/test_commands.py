"""Run the commands and Python snippets of README.md and docs/ on small data."""

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
from contextlib import suppress

import pytest
import yaml
from docs_env import make_sandbox, make_stock
from pages import FENCE, PAGES, ROOT, SHELL, blocks, lines

from paddleseg_segformer.config import load_config
from paddleseg_segformer.config_check import check_config

TIMEOUT = 900  # seconds for the commands of a page
INSTALLS = "changes the environment of the tests; the Makefile's targets install the same"
CI = "CI runs the Makefile's targets"
DOCKER = "there is no Docker in CI"
COMPAT_RUN = "needs a checkout of PaddleSeg; tests/test_compat_run.py runs a similar script"
GPU = "needs an NVIDIA GPU and PyTorch's build for it"
TENSORRT = "needs an NVIDIA GPU and TensorRT"
NOT_RUN = {
    "make quickstart": CI,
    "make test": CI,
    "python tools/doctor.py --json doctor.json": CI,
    "apt-get install -y libgl1 libglib2.0-0 libgomp1": INSTALLS,
    "docker build -t segformer .": DOCKER,
    'docker run --rm -v "$PWD:/work" segformer make_scenes': DOCKER,
    'docker run --rm --shm-size 2g -v "$PWD:/work" segformer train --config '
    "configs/quickstart.yaml": DOCKER,
    "python benchmarks/gpu_algorithms.py": GPU,
    "pip install --no-deps paddleseg": INSTALLS,
    "pip install --no-deps -r requirements.txt -e .": INSTALLS,
    "pip install -e .": INSTALLS,
    "pip install -e '.[paddleseg]'": INSTALLS,
    "pip install 'paddleseg-segformer[cpu] @ git+URL'": INSTALLS,
    "pip install paddlepaddle-gpu==3.3.0 -i "
    "https://www.paddlepaddle.org.cn/packages/stable/cu126/": INSTALLS,
    'python -c "import paddle; paddle.utils.run_check()"': "follows the command above",
    "pip install -r requirements-onnx.txt": INSTALLS,
    "pip install -r requirements-onnx.txt -r requirements-parity.txt": INSTALLS,
    "pip install -r requirements-parity.txt": INSTALLS,
    "pip install -r requirements-serve.txt": INSTALLS,
    "polygraphy run engine/model.onnx --trt --onnxrt --fp16 --trt-min-shapes x:[1,3,256,256] "
    "--trt-opt-shapes x:[1,3,512,512] --trt-max-shapes x:[1,3,1024,2048] "
    "--input-shapes x:[1,3,512,512] --atol 0.1": TENSORRT,
    "python -m paddleseg_segformer.compat_run tools/train.py --config my.yml --do_eval": COMPAT_RUN,
    "trtexec --onnx=engine/model.onnx --fp16 --saveEngine=engine/model.plan "
    "--minShapes=x:1x3x256x256 --optShapes=x:1x3x512x512 --maxShapes=x:1x3x1024x2048": TENSORRT,
}

# Optional programs and packages that a command with this text needs.
NEEDS = {
    "--format onnx": ("onnx", "onnxruntime", "paddle2onnx"),
    "tools/serve.py": ("flask", "waitress"),
    "curl ": ("curl",),
    "huggingface": ("torch", "transformers"),
    "nvidia/": ("huggingface_hub",),
    "-onnxruntime": ("onnxruntime", "paddle2onnx"),
    "-openvino": ("openvino",),
    "large_raster": ("rasterio",),
}

# Replacements in commands: fewer iterations of loops, and fewer sizes.
SHORTER = {
    "for size in 256 512 1024 2048": "for size in 256",
    "for b in 0 1 2 3 4 5": "for b in 0",
    "mit-b2_512x512_160k_ade20k.yaml --rounds 9": "mit-b0_512x512_160k_ade20k.yaml",
    "growth.py --config configs/segformer_mit-b0_512x512_160k_ade20k.yaml --against huggingface": (
        "growth.py --config configs/segformer_mit-b0_512x512_160k_ade20k.yaml --rounds 1 "
        "--sizes 64 128 --batch_sizes 1 2 --classes 19 150"
    ),
}


def name(page):
    return str(page.relative_to(ROOT))


def has(need):
    return bool(shutil.which(need) or importlib.util.find_spec(need))


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    return make_stock(tmp_path_factory.mktemp("stock"))


def script(page, folder):
    """The page's commands as a shell script, and its Python snippets as files in ``folder``."""
    commands = []
    for block in blocks(page):
        if block.language in SHELL:
            commands += [line for line in lines(block.text) if line not in NOT_RUN]
        elif block.language == "python":
            file = folder / f"line_{block.line}.py"
            file.write_text(block.text)
            commands.append(f"python {file.name}")
    return "\n".join(commands) + "\n"


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands(page, stock, tmp_path):
    text = script(page, tmp_path)
    code = text + "".join(file.read_text() for file in tmp_path.glob("line_*.py"))
    missing = [n for key, needs in NEEDS.items() if key in code for n in needs if not has(n)]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed")
    port = free_port()
    environment = make_sandbox(tmp_path, stock, "tools/train.py" not in text, port)
    for long, short in SHORTER.items():
        text = text.replace(long, short)
    for file in [tmp_path / "page.sh", *tmp_path.glob("line_*.py")]:
        content = text if file.suffix == ".sh" else file.read_text()
        content = content.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
        file.write_text(re.sub(r"(?<=[=\s'\"])/data/", f"{tmp_path}/data/", content))
    log = tmp_path / "page.log"  # not a pipe: a server in the background would keep it open
    with log.open("w") as output:
        page_run = subprocess.Popen(
            ["bash", "-eux", "page.sh"],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = page_run.wait(timeout=TIMEOUT)
        finally:  # servers in the background, and commands that hang
            with suppress(ProcessLookupError):
                os.killpg(page_run.pid, signal.SIGKILL)
    assert code == 0, log.read_text()[-4000:]


def test_skipped_and_shortened_commands_are_in_a_page():
    shell = [block.text for page in PAGES for block in blocks(page) if block.language in SHELL]
    commands = {line for text in shell for line in lines(text)}
    assert NOT_RUN.keys() <= commands
    assert all(any(part in line for line in commands) for part in SHORTER)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_yaml_snippets_are_valid_config_sections(page):
    for block in blocks(page):
        if block.language == "yaml":
            tree = yaml.safe_load(block.text)
            if "model" in tree or "train_dataset" in tree:
                rest = load_config(ROOT / "configs/quickstart.yaml").dic
                del rest["model"]["backbone"]["in_channels"]  # added after the check
                check_config({**rest, **tree})


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_flags_of_inline_commands_exist(page):
    """Commands in sentences and tables, some of them abbreviated with an ellipsis."""
    common = (ROOT / "paddleseg_segformer/cli/common.py").read_text(encoding="utf-8")
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for code in re.findall(r"`([^`]*)`", text):
        if not re.search(r"tools/\w+\.py", code):
            continue
        tool, arguments = re.search(r"tools/(\w+)\.py(.*)", code, re.DOTALL).groups()
        source = (ROOT / f"paddleseg_segformer/cli/{tool}.py").read_text(encoding="utf-8") + common
        for flag in re.findall(r"--\w+", arguments):
            assert f'"{flag}"' in source, code

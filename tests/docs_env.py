"""A copy of the checkout with small data, in which the commands of the documentation run."""

import json
import os
import re
import shutil
import sys
import tarfile

import cv2
import numpy as np
from checkpoint_fixtures import FORMATS
from hub import model_files, write_cache
from pages import ROOT
from safetensors.numpy import save_file
from served_model import write_model
from small_models import save

import paddleseg_segformer as ps
from paddleseg_segformer.data.scenes import draw_scene, write_scenes

SIZE = (128, 96)
# Replacements of image sizes in the configs.
SMALLER = {"2048": "128", "1024": "96", "960": "128", "768": "64", "720": "96"}
SMALLER |= {"640": "64", "512": "64", "320": "64"}
VARIANTS = ("b0", "b2")  # ImageNet weights that pages use
FROM_CHECKOUT = (
    "tools",
    "benchmarks",
    "paddleseg_segformer",
    "README.md",
    "pyproject.toml",
)

# Repositories of Hugging Face that the pages use, and their number of classes.
REPOSITORIES = {
    "nvidia/segformer-b0-finetuned-ade-512-512": 150,
    "nvidia/segformer-b0-finetuned-cityscapes-1024-1024": 19,
    "nvidia/mit-b0": 1,
}

# Checkpoints that the pages assume to exist: format and number of classes.
CHECKPOINTS = {
    "segformer.b0.512x512.ade.160k.pth": ("nvlabs", 150),
    "segformer-b0-finetuned-ade-512-512": ("huggingface", 150),
    "segformer-b0-finetuned-cityscapes-1024-1024": ("huggingface", 19),
    "segformer_mit-b0_512x512_160k_ade20k.pth": ("mmseg", 150),
    "segformer_b0_ade20k_512x512_160k.pdparams": ("paddlevit", 150),
    "model.pdparams": ("paddleseg", 19),
}
IMAGES = ("photo.jpg", "street.jpg", "city.tif", "photos/1.jpg", "photos/2.jpg")

# The sandbox's python: runs the command with flags that make it short.
PYTHON = """\
#!{python}
import os, subprocess, sys, time, urllib.request
arguments = sys.argv[1:]
scripts = [a for a in arguments if a.startswith(("tools/", "benchmarks/"))]
tool = os.path.basename(scripts[0]) if scripts else ""
if arguments[:2] == ["-m", "paddleseg_segformer"]:
    tool = arguments[2] + ".py"
short = {{
    "train.py": ["--iters", "2", "--batch_size", "1"],
    "benchmark.py": ["--size", "64", "64", "--rounds", "1", "--samples", "2"],
    "int8.py": ["--size", "64", "64", "--rounds", "1"],
    "make_scenes.py": ["--train", "4", "--val", "2"],
    "survey_models.py": ["--models", "FCN"],
    "large_raster.py": ["--sizes", "4900"],
    "serve.py": ["--port", "{port}"],
}}
command = [{python!r}, *arguments, *short.get(tool, [])]
if tool != "serve.py":
    os.execv(command[0], command)
server = subprocess.Popen(command)
for _ in range(3000):
    try:
        urllib.request.urlopen("http://127.0.0.1:{port}/").read()
        break
    except OSError:
        if server.poll() is not None:
            sys.exit("the server has exited")
        time.sleep(0.1)
else:
    sys.exit("the server does not respond")
"""


def write_data(root):
    """Write datasets in the layouts of the configs: ADE20K and Cityscapes."""
    write_scenes(root / "ADEChallengeData2016", train=4, val=2, size=SIZE)
    (root / "ade").symlink_to("ADEChallengeData2016")
    labels = {}
    for path in sorted((root / "ADEChallengeData2016/images").rglob("*.jpg")):
        annotation = str(path).replace("/images/", "/annotations/").replace(".jpg", ".png")
        ids = cv2.imread(annotation, cv2.IMREAD_GRAYSCALE)
        labels[path] = np.where(ids == 0, 255, ids % 11).astype("uint8")
    splits = {"training": "train", "validation": "val"}
    for number, (path, label) in enumerate(labels.items()):
        split, image = splits[path.parent.name], cv2.imread(str(path))
        name = f"town_{number:06d}_000000"
        folders = ("leftImg8bit", "leftImg8bit.png"), ("gtFine", "gtFine_labelTrainIds.png")
        for (folder, ending), pixels in zip(folders, (image, label)):
            write(root / f"cityscapes/{folder}/{split}/town/{name}_{ending}", pixels)


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def write_weights(root):
    """Write the checkpoints that pages use; all as safetensors, which is detected by content."""
    for name, (source_format, classes) in CHECKPOINTS.items():
        make, projection = FORMATS[source_format]
        model = ps.SegFormer(classes, ps.MixVisionTransformer_B0(), 256, projection)
        state = make({k: v.numpy() for k, v in model.state_dict().items()}, classes)
        target = root / name
        if not target.suffix or source_format == "huggingface":
            target.mkdir()
            labels = {str(i): f"class {i}" for i in range(classes)}
            (target / "config.json").write_text(json.dumps({"id2label": labels}))
            target = target / "model.safetensors"
        save_file({k: np.ascontiguousarray(v) for k, v in state.items()}, target)
    for name, classes in REPOSITORIES.items():
        model = ps.SegFormer(classes, ps.MixVisionTransformer_B0(), 256)
        write_cache(root / "hub", name, model_files(model, [f"class {i}" for i in range(classes)]))
    folder = root / "weights"
    folder.mkdir()
    for variant in VARIANTS:
        backbone = getattr(ps, f"MixVisionTransformer_{variant.upper()}")()
        file = save(backbone, folder / f"{variant}.pdparams")
        with tarfile.open(folder / f"{variant}.tar.gz", "w:gz", compresslevel=0) as archive:
            archive.add(file, "model.pdparams")


def make_stock(root):
    """Write the files that all sandboxes share: datasets, checkpoints, images, a trained model."""
    write_data(root / "data")
    write_weights(root)
    for seed, name in enumerate(IMAGES):
        write(root / name, draw_scene(np.random.default_rng(seed), SIZE)[0][:, :, ::-1])
    (root / "output/best_model").mkdir(parents=True)
    write_model(root / "output/best_model")
    return root


def make_sandbox(root, stock, trained, port):
    """Make a copy of the checkout with smaller configs and the files of ``make_stock``.

    Args:
        root: An empty folder.
        stock: The folder of ``make_stock``.
        trained: Whether to include the trained model in ``output``.
        port: The port of ``tools/serve.py``.

    Returns:
        The environment variables for commands: ``python`` is ``PYTHON``, without network access.
    """
    for name in (*FROM_CHECKOUT, *(path.name for path in ROOT.glob("requirements*.txt"))):
        (root / name).symlink_to(ROOT / name)
    for path in stock.iterdir():
        if path.name not in ("output", "data"):
            (root / path.name).symlink_to(path)
    for folder in ("docs", "data", "bin"):
        (root / folder).mkdir()
    for path in (stock / "data").iterdir():
        (root / "data" / path.name).symlink_to(path)
    if trained:
        shutil.copytree(stock / "output", root / "output")
    for path in (ROOT / "configs").rglob("*.yaml"):
        target = root / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(smaller(path.read_text(encoding="utf-8")), encoding="utf-8")
    python = root / "bin/python"
    python.write_text(PYTHON.format(python=sys.executable, port=port))
    python.chmod(0o755)
    (root / ".curlrc").write_text("fail\n")  # otherwise curl succeeds on HTTP errors
    unreachable = "http://127.0.0.1:9"
    return {
        **os.environ,
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "CURL_HOME": str(root),
        "HF_HUB_CACHE": str(stock / "hub"),
        "HF_HUB_OFFLINE": "1",
        "http_proxy": unreachable,
        "https_proxy": unreachable,
        "no_proxy": "127.0.0.1",
    }


def smaller(config):
    """The text of a config with smaller images, and local files instead of weight URLs."""
    config = re.sub(r"https://\S+/mix_vision_transformer_(b\d\.tar\.gz)", r"weights/\1", config)
    return re.sub(r"(?<!embedding_dim: )\b\d{3,4}\b", lambda n: SMALLER.get(n[0], n[0]), config)

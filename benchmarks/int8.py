"""Size, speed and agreement of an ONNX export in float32 and int8, with both inference backends.

The runs of the graphs alternate, so that background load affects all of them. Times are medians.
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import paddle
from benchmark import add_size_argument, machine

from paddleseg_segformer import device
from paddleseg_segformer.cli import common
from paddleseg_segformer.config import build, load_config
from paddleseg_segformer.deploy import export
from paddleseg_segformer.deploy.quantize import find_calibration_images
from paddleseg_segformer.inference import Predictor
from paddleseg_segformer.inference.backends import ONNX_BACKENDS, open_backend
from paddleseg_segformer.log import setup_logging


def parse_args():
    parser = common.plain_parser(
        __doc__,
        "--image_path photos/ --config configs/segformer_mit-b2_512x512_160k_ade20k.yaml",
    )
    parser.add_argument("--image_path", required=True, metavar="PATH", help="as of export --int8")
    parser.add_argument("--model_path", metavar="PATH", help="as of export (default: random)")
    parser.add_argument("--config", metavar="FILE", help="YAML config; of random weights: required")
    add_size_argument(parser, "image size of the timed runs")
    parser.add_argument(
        "--rounds", type=common.positive_int, metavar="N", default=9, help="timed runs per graph"
    )
    return parser.parse_args()


def random_weights(config, folder):
    random_init = ["model.pretrained=null", "model.backbone.pretrained=null"]
    paddle.seed(0)
    (model,) = build(load_config(config, random_init), "model")
    paddle.save(model.state_dict(), str(folder / "random.pdparams"))
    return folder / "random.pdparams"


def measure(runs, rounds):
    """Seconds of each of ``runs``, functions by name; the first round is for warming up."""
    seconds = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name] += [time.perf_counter() - start] if number else []
    return {name: statistics.median(values) for name, values in seconds.items()}


def agreement(paths, backend, images):
    """The share of pixels to which the two graphs give the same class."""
    graphs = [Predictor(path, backend=backend) for path in paths]
    maps = [np.concatenate([graph(x).label_map.ravel() for x in images]) for graph in graphs]
    return (maps[0] == maps[1]).mean()


def main():
    args = parse_args()
    setup_logging()
    device.tune_cpu()
    images = find_calibration_images(args.image_path)[1]
    image = np.random.default_rng(0).normal(size=[1, 3, *args.size]).astype("float32")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        paths = {name: folder / name / "model.onnx" for name in ("float32", "int8")}
        weights = args.model_path or random_weights(args.config, folder)
        options = {"config": args.config, "format": "onnx"}
        export(weights, paths["float32"].parent, images[0], **options)
        options |= {"int8": True, "min_agreement": 0}
        export(weights, paths["int8"].parent, args.image_path, **options)
        runs = {}
        for backend in ONNX_BACKENDS:
            for name, path in paths.items():
                graph = open_backend(path, backend)
                runs[backend, name] = lambda graph=graph: graph(image)
        seconds = measure(runs, args.rounds)
        same = {name: agreement(paths.values(), name, images) for name in ONNX_BACKENDS}
        vnni = "with" if "vnni" in Path("/proc/cpuinfo").read_text() else "without"
        print(f"{args.model_path or args.config}, {machine()}, {vnni} VNNI")
        print(f"{'':22} {'size':>8} {'median':>9} {'ratio':>6}  same class, {len(images)} images")
        for (backend, name), value in seconds.items():
            ratio = value / seconds[backend, "float32"]
            line = f"{backend:13} {name:8} {paths[name].stat().st_size / 2**20:5.1f} MB"
            line += f" {1000 * value:6.0f} ms {ratio:5.2f}x"
            print(line + (f"  {same[backend]:.2%}" if name == "int8" else ""))


if __name__ == "__main__":
    common.run(main)

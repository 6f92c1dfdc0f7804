"""Train long and predict often, and report how memory, open files and threads grow meanwhile.

Needs Linux, and the quick start's data set and model (make quickstart).
"""

import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from paddleseg_segformer.cli import common
from paddleseg_segformer.inference import Predictor

EVERY = 1.0  # seconds between looks
CONFIG = "configs/quickstart.yaml"
FIGURES = ("memory, MB", "open files", "threads", "processes")


def main():
    parser = common.plain_parser(__doc__, "--iters 2000 --predictions 10000")
    parser.add_argument("--iters", type=common.positive_int, default=2000, help="iterations to train")
    parser.add_argument(
        "--predictions", type=common.positive_int, default=10000, help="images to label"
    )
    parser.add_argument("--model_path", default="output/quickstart/best_model")
    parser.add_argument("--images", default="data/scenes/images/validation")
    parser.add_argument("--predict_only", action="store_true", help="do no more than predict")
    args = parser.parse_args()
    if args.predict_only:
        return predict(args)
    with tempfile.TemporaryDirectory() as folder:
        training = ["tools/train.py", "--config", CONFIG, "--save_dir", folder]
        training += ["--iters", str(args.iters), "--num_workers", "2", "--do_eval"]
        training += ["--save_interval", str(max(1, args.iters // 20)), "--use_ema"]
        report(f"{args.iters} iterations", args.iters, watch(training, folder))
        predicting = [__file__, "--predict_only", "--predictions", str(args.predictions)]
        predicting += ["--model_path", args.model_path, "--images", args.images]
        looks = watch(predicting, folder)
        report(f"{args.predictions} predictions", args.predictions, looks)


def predict(args):
    predictor = Predictor(args.model_path)
    for path in islice(cycle(sorted(Path(args.images).iterdir())), args.predictions):
        predictor(path).overlay()


def watch(arguments, folder):
    """Figures of a command's process and all below it, at each look: float array ``[looks, 4]``."""
    looks = []
    with open(Path(folder, "log.txt"), "w") as log:
        process = subprocess.Popen([sys.executable, *arguments], stdout=log, stderr=log)
        while process.poll() is None:
            looks.append(np.sum([look(pid) for pid in tree(process.pid)], axis=0))
            time.sleep(EVERY)
    if process.returncode:
        sys.exit(Path(folder, "log.txt").read_text()[-2000:])
    return np.array(looks[:-1], dtype="float64")  # the last may be of a process that is ending


def tree(pid):
    """A process and all below it."""
    pids = [pid]
    for parent in pids:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            pids += map(int, read(task).split())
    return pids


def look(pid):
    status = dict(line.split(":", 1) for line in read(f"/proc/{pid}/status").splitlines())
    try:
        files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        files = 0
    memory = int(status.get("VmRSS", "0 kB").split()[0]) / 1024
    return memory, files, int(status.get("Threads", 0)), 1


def read(path):
    """A file's text; nothing where the process has just ended."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def report(title, steps, looks):
    """Print what was used early and late, and the slope between: the first third is warming up."""
    third = len(looks) // 3
    steady = looks[third:]
    middle, end = np.median(steady[:third], axis=0), np.median(steady[third:], axis=0)
    slopes = np.polyfit(np.arange(len(steady)), steady, 1)[0] * len(looks) / steps * 1000
    print(f"{title}, {len(looks)} looks\n{'':12}  middle third  last third  growth per 1000")
    for figure, *values in zip(FIGURES, middle, end, slopes):
        print("{:12} {:13.1f} {:11.1f} {:16.2f}".format(figure, *values))


if __name__ == "__main__":
    common.run(main)

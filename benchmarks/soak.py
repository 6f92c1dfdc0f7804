"""Report the growth of memory, open files and threads in long training and many predictions.

Needs Linux, and the dataset and model of make quickstart.
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

INTERVAL = 1.0  # seconds between samples
CONFIG = "configs/quickstart.yaml"
METRICS = ("memory, MB", "open files", "threads", "processes")


def main():
    parser = common.plain_parser(__doc__, "--iters 2000 --predictions 10000")
    parser.add_argument(
        "--iters", type=common.positive_int, default=2000, help="training iterations"
    )
    parser.add_argument(
        "--predictions", type=common.positive_int, default=10000, help="number of predictions"
    )
    parser.add_argument(
        "--model_path",
        default="output/quickstart/best_model",
        metavar="PATH",
        help="model to predict with",
    )
    parser.add_argument(
        "--images",
        default="data/scenes/images/validation",
        metavar="DIR",
        help="folder of images to predict",
    )
    parser.add_argument("--predict_only", action="store_true", help="predict without monitoring")
    args = parser.parse_args()
    if args.predict_only:
        return predict(args)
    with tempfile.TemporaryDirectory() as folder:
        training = ["tools/train.py", "--config", CONFIG, "--save_dir", folder]
        training += ["--iters", str(args.iters), "--num_workers", "2", "--do_eval"]
        training += ["--save_interval", str(max(1, args.iters // 20)), "--use_ema"]
        report(f"{args.iters} iterations", args.iters, monitor(training, folder))
        predicting = [__file__, "--predict_only", "--predictions", str(args.predictions)]
        predicting += ["--model_path", args.model_path, "--images", args.images]
        samples = monitor(predicting, folder)
        report(f"{args.predictions} predictions", args.predictions, samples)


def predict(args):
    predictor = Predictor(args.model_path)
    for path in islice(cycle(sorted(Path(args.images).iterdir())), args.predictions):
        predictor(path).overlay()


def monitor(arguments, folder):
    """Run a Python command and sample the ``METRICS`` of its process tree.

    Returns:
        float64 array ``[samples, 4]``.
    """
    samples = []
    with open(Path(folder, "log.txt"), "w") as log:
        process = subprocess.Popen([sys.executable, *arguments], stdout=log, stderr=log)
        while process.poll() is None:
            samples.append(np.sum([metrics(pid) for pid in process_tree(process.pid)], axis=0))
            time.sleep(INTERVAL)
    if process.returncode:
        sys.exit(Path(folder, "log.txt").read_text()[-2000:])
    return np.array(samples[:-1], dtype="float64")  # the process may be exiting in the last one


def process_tree(pid):
    """The ids of a process and its descendants."""
    pids = [pid]
    for parent in pids:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            pids += map(int, read(task).split())
    return pids


def metrics(pid):
    """The ``METRICS`` of one process."""
    status = dict(line.split(":", 1) for line in read(f"/proc/{pid}/status").splitlines())
    try:
        files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        files = 0
    memory = int(status.get("VmRSS", "0 kB").split()[0]) / 1024
    return memory, files, int(status.get("Threads", 0)), 1


def read(path):
    """The text of a file in /proc; empty if the process has exited."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def report(title, steps, samples):
    """Print medians of the middle and the last third, and the slope; the first third warms up."""
    third = len(samples) // 3
    steady = samples[third:]
    middle, end = np.median(steady[:third], axis=0), np.median(steady[third:], axis=0)
    slopes = np.polyfit(np.arange(len(steady)), steady, 1)[0] * len(samples) / steps * 1000
    print(f"{title}, {len(samples)} samples\n{'':12}  middle third  last third  growth per 1000")
    for name, *values in zip(METRICS, middle, end, slopes):
        print("{:12} {:13.1f} {:11.1f} {:16.2f}".format(name, *values))


if __name__ == "__main__":
    common.run(main)

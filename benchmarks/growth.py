"""Measure how time grows with CPU threads, image size, batch size and number of classes.

For size, batch and classes it fits the exponent of a power law (the size counts by its pixels);
for threads, the share p of the time on one thread that is divided among them (Amdahl's law,
T(n) = T(1) (1 - p + p / n)), from which it computes the times with 4 to 32 threads. The
implementations alternate; times are medians.
"""

import numpy as np
from benchmark import DEFAULT_BATCH_SIZES, machine, measure, model_spec

from paddleseg_segformer.cli import common
from paddleseg_segformer.config import load_config
from paddleseg_segformer.device import available_cpus
from paddleseg_segformer.errors import InputError

PREDICTED_THREADS = (4, 8, 16, 32)


def parse_args():
    parser = common.config_parser(
        __doc__,
        "--config configs/segformer_mit-b0_512x512_160k_ade20k.yaml --against huggingface",
    )
    parser.add_argument(
        "--against",
        nargs="+",
        default=[],
        metavar="NAME",
        help="implementations of benchmark.py to compare with",
    )
    parser.add_argument(
        "--rounds", type=common.positive_int, default=3, metavar="N", help="timed runs of each"
    )
    for name, values, text in (
        ("sizes", [256, 512, 1024], "sides of the square images of infer"),
        ("batch_sizes", [1, 2, 4], "batch sizes of train"),
        ("classes", [19, 75, 150, 250], "numbers of classes of train, batch 1"),
    ):
        parser.add_argument(
            f"--{name}", type=common.positive_int, nargs="+", default=values, help=text
        )
    args = parser.parse_args()
    if max(args.classes) > 255:
        raise InputError("--classes: must be at most 255, as in 8-bit label images.")
    return args


def exponent(values, seconds):
    """The exponent of the power law that fits best, by least squares of the logarithms."""
    return np.polyfit(np.log(values), np.log(seconds), 1)[0]


def parallel_share(threads, seconds):
    """p of Amdahl's law by least squares, relative to the time on one thread; see above."""
    gain = 1 - 1 / np.array(threads)
    saved = 1 - np.array(seconds) / seconds[0]
    return (gain @ saved) / (gain @ gain)


def thread_counts():
    """1, 2, 4, ... up to the number of CPUs, which is included."""
    cpus = available_cpus()
    return sorted({*(1 << i for i in range(cpus.bit_length())), cpus})


def main():
    args = parse_args()
    model = load_config(args.config, args.opts).dic["model"]
    names = ["ours", *args.against]
    base = {
        "config": args.config,
        "opts": args.opts,
        "size": [512, 512],
        **model_spec(model),
        "device": "cpu",
        "precision": "fp32",
        "samples": 1,
    }

    def medians(job, threads=None, **changes):
        spec = {**base, "job": job, "batch_size": DEFAULT_BATCH_SIZES[job], **changes}
        processes, _ = measure(names, spec, args.rounds, threads)
        return [float(np.median(process.seconds)) for process in processes]

    def sweep(title, values, fit, run):
        """Print the seconds of ``run(value)``, and what ``fit`` gives for an implementation's."""
        columns = [run(value) for value in values]
        print(f"\n{title:24}", *(f"{value:>10}" for value in values))
        for name, times in zip(names, zip(*columns)):
            cells = (f"{second:8.3f} s" for second in times)
            print(f"{name:24}", *cells, f"  {fit(values, times)}", flush=True)

    def power(values, times):
        return f"exponent {exponent(values, times):.2f}"

    def amdahl(values, times):
        p = parallel_share(values, times)
        predicted = (f"{times[0] * (1 - p + p / n):.3f} s ({n})" for n in PREDICTED_THREADS)
        return f"parallel share {p:.0%}; computed: {', '.join(predicted)}"

    print(f"{args.config}, {machine()}")
    threads = thread_counts()
    if len(threads) > 1:
        for job in DEFAULT_BATCH_SIZES:
            sweep(f"{job}, by threads", threads, amdahl, lambda n, job=job: medians(job, n))
    pixels = [side**2 for side in args.sizes]
    sweep("infer, by pixels", pixels, power, lambda n: medians("infer", size=[round(n**0.5)] * 2))
    sweep("train, by batch", args.batch_sizes, power, lambda n: medians("train", batch_size=n))

    def with_classes(n):
        data = ("train_dataset", "val_dataset")
        changes = [f"{name}.{key}" for name in data for key in ("type=Dataset", f"num_classes={n}")]
        opts = [*args.opts, f"model.num_classes={n}", *changes]
        return medians("train", batch_size=1, classes=n, opts=opts)

    sweep("train, by classes", args.classes, power, with_classes)


if __name__ == "__main__":
    common.run(main)

"""Draw what benchmark.py --json wrote.

sizes: time and memory against image size. models: multiply-accumulates against published mIoU.
"""

import json
from pathlib import Path

from paddleseg_segformer.cli import common

# Paper, table 1: mIoU on ADE20K val, single scale.
PUBLISHED = {"B0": 37.4, "B1": 42.2, "B2": 46.5, "B3": 49.4, "B4": 50.3, "B5": 51.0}


def parse_args():
    parser = common.plain_parser(__doc__, "sizes size_*.json --output docs/sizes.png")
    parser.add_argument("plot", choices=("sizes", "models"))
    parser.add_argument("reports", nargs="+", metavar="JSON", help="files of benchmark.py infer")
    parser.add_argument("--output", required=True, metavar="PNG")
    return parser.parse_args()


def curves(reports, x, y):
    """``{implementation: [(x, y), ...]}`` over the reports, in order of x."""
    points = {}
    for report in reports:
        for row in report["rows"]:
            points.setdefault(row["name"], []).append((x(report), y(row)))
    return {name: sorted(pairs) for name, pairs in points.items()}


def draw(axes, points, x_label, y_label):
    for name, pairs in points.items():
        axes.plot(*zip(*pairs), marker="o", label=name)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    axes.legend()


def main():
    from matplotlib import pyplot  # a second to import

    args = parse_args()
    reports = [json.loads(Path(path).read_text(encoding="utf-8")) for path in args.reports]
    if args.plot == "sizes":
        figure, (time, memory) = pyplot.subplots(1, 2, figsize=(11, 4.2))

        def side(report):
            return report["spec"]["size"][0]

        draw(time, curves(reports, side, lambda row: row["seconds"]), "image side", "seconds")
        used = curves(reports, side, lambda row: row["peak_memory"] / 2**30)
        draw(memory, used, "image side", "peak memory above idle, GiB")
        for axes in (time, memory):
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks([side(report) for report in reports], [side(r) for r in reports])
    else:
        figure, axes = pyplot.subplots(figsize=(6, 4.2))
        points = curves(
            reports, lambda report: PUBLISHED[report["spec"]["backbone"]], lambda row: row["gmacs"]
        )
        points = {name: [(y, x) for x, y in pairs] for name, pairs in points.items()}
        draw(axes, points, "GMACs of a 512 x 512 image, counted", "mIoU, published")
        axes.set_ylim(36, 52)
        sizes = {miou: size for size, miou in PUBLISHED.items()}
        for x, y in points["ours"]:
            axes.annotate(sizes[y], (x, y), textcoords="offset points", xytext=(-14, 4))
    figure.tight_layout()
    figure.savefig(args.output, dpi=120)


if __name__ == "__main__":
    common.run(main)

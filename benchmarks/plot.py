"""Plot results of benchmark.py --json.

sizes: time and memory over image size. models: published mIoU over multiply-accumulates.
"""

import json
from pathlib import Path

from paddleseg_segformer.cli import common

# Paper, table 1: mIoU on ADE20K val, single scale.
PUBLISHED = {"B0": 37.4, "B1": 42.2, "B2": 46.5, "B3": 49.4, "B4": 50.3, "B5": 51.0}


def parse_args():
    parser = common.plain_parser(__doc__, "sizes size_*.json --output docs/sizes.png")
    parser.add_argument("plot", choices=("sizes", "models"), help="which plot to draw")
    parser.add_argument("reports", nargs="+", metavar="JSON", help="results of benchmark.py infer")
    parser.add_argument(
        "--output", required=True, metavar="FILE", help="image to write, PNG or SVG"
    )
    return parser.parse_args()


def curves(reports, x, y):
    """``{implementation: [(x, y), ...]}`` of all reports, sorted by x."""
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
    args = parse_args()
    from matplotlib import pyplot  # takes a second

    reports = [json.loads(Path(path).read_text(encoding="utf-8")) for path in args.reports]
    if args.plot == "sizes":
        figure, (time, memory) = pyplot.subplots(1, 2, figsize=(11, 4.2))

        def side(report):
            return report["spec"]["size"][0]

        draw(time, curves(reports, side, lambda row: row["seconds"]), "image side", "seconds")
        gib = curves(reports, side, lambda row: row["peak_memory"] / 2**30)
        draw(memory, gib, "image side", "peak memory above idle, GiB")
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
        draw(axes, points, "measured GMACs per 512 x 512 image", "published mIoU")
        axes.set_ylim(36, 52)
        variants = {miou: variant for variant, miou in PUBLISHED.items()}
        for x, y in points["ours"]:
            axes.annotate(variants[y], (x, y), textcoords="offset points", xytext=(-14, 4))
    figure.tight_layout()
    figure.savefig(args.output, dpi=120)


if __name__ == "__main__":
    common.run(main)

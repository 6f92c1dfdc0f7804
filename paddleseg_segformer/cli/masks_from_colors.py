"""Convert color masks to class-index masks.

labels.txt in the dataset folder gives the name and the color of each class.
"""

from pathlib import Path

from ..data.prepare import convert_color_masks
from . import common


def parse_args():
    parser = common.plain_parser(
        __doc__,
        "data/mine colored annotations\n"
        "with lines such as these in data/mine/labels.txt:\n  background 0 0 0\n  cat 128 0 0",
    )
    parser.add_argument("dataset_root", help="dataset folder, which contains labels.txt")
    parser.add_argument("colored", help="folder of the color masks, inside dataset_root")
    parser.add_argument("target", help="output folder inside dataset_root")
    parser.add_argument(
        "--ignore_others",
        action="store_true",
        help="map colors of no class to 255, the ignore index, instead of reporting an error",
    )
    parser.add_argument("--force", action="store_true", help="overwrite existing masks")
    return parser.parse_args()


def main():
    args = parse_args()
    count = convert_color_masks(
        args.dataset_root, args.colored, args.target, args.ignore_others, args.force
    )
    print(f"{count} masks are in {Path(args.dataset_root, args.target)}")

"""Write masks of class indices from masks of colors, which labels.txt gives to the classes."""

from ..data.prepare import convert_color_masks
from . import common


def parse_args():
    parser = common.plain_parser(
        __doc__,
        "data/mine colored annotations\n"
        "with lines such as these in data/mine/labels.txt:\n  background 0 0 0\n  cat 128 0 0",
    )
    parser.add_argument("dataset_root", help="folder of the data set, which holds labels.txt")
    parser.add_argument("colored", help="folder in it of the masks of colors")
    parser.add_argument("target", help="folder in it for the masks of class indices")
    parser.add_argument(
        "--ignore_others",
        action="store_true",
        help="a color of no class becomes 255, which training ignores; else it is an error",
    )
    parser.add_argument("--force", action="store_true", help="replace masks that are there")
    return parser.parse_args()


def main():
    args = parse_args()
    number = convert_color_masks(
        args.dataset_root, args.colored, args.target, args.ignore_others, args.force
    )
    print(f"{number} masks are in {args.dataset_root}/{args.target}")

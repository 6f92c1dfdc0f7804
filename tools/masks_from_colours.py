"""Write masks of class indices from masks of colours, which labels.txt gives to the classes."""

from paddleseg_segformer.data.colour_masks import convert_colour_masks
from paddleseg_segformer.engine import cli


def parse_args():
    parser = cli.plain_parser(
        __doc__,
        "data/mine coloured annotations\n"
        "with lines such as these in data/mine/labels.txt:\n  background 0 0 0\n  cat 128 0 0",
    )
    parser.add_argument("dataset_root", help="folder of the data set, which holds labels.txt")
    parser.add_argument("coloured", help="folder in it of the masks of colours")
    parser.add_argument("target", help="folder in it for the masks of class indices")
    parser.add_argument(
        "--ignore_others",
        action="store_true",
        help="a colour of no class becomes 255, which training ignores; else it is an error",
    )
    parser.add_argument("--force", action="store_true", help="replace masks that are there")
    return parser.parse_args()


def main():
    args = parse_args()
    number = convert_colour_masks(
        args.dataset_root, args.coloured, args.target, args.ignore_others, args.force
    )
    print(f"{number} masks are in {args.dataset_root}/{args.target}")


if __name__ == "__main__":
    cli.run(main)

"""Draw a small synthetic dataset in ADE20K's layout."""

from ..data.scenes import write_scenes
from ..errors import InputError
from ..fs import output_dir
from . import common

MIN_SIZE, MAX_SIZE = 96, 8192
MAX_IMAGES = 1_000_000


def parse_args():
    parser = common.plain_parser(__doc__, "--save_dir data/scenes")
    parser.add_argument(
        "--save_dir", default="data/scenes", metavar="DIR", help="dataset_root of the new dataset"
    )
    parser.add_argument(
        "--train", type=int, default=240, metavar="N", help="number of training images"
    )
    parser.add_argument(
        "--val", type=int, default=40, metavar="N", help="number of validation images"
    )
    parser.add_argument(
        "--size", type=int, nargs=2, default=(192, 144), metavar=("W", "H"), help="image size"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed")
    parser.add_argument(
        "--color_masks",
        action="store_true",
        help="instead of ADE20K's layout: images, color masks and labels.txt, all in one split",
    )
    return parser.parse_args()


def main():
    args = parse_args()
    if min(args.size) < MIN_SIZE or max(args.size) > MAX_SIZE:
        raise InputError(f"--size: width and height must be from {MIN_SIZE} to {MAX_SIZE}.")
    if not all(1 <= count <= MAX_IMAGES for count in (args.train, args.val)):
        raise InputError(f"--train and --val: must both be from 1 to {MAX_IMAGES}.")
    if args.seed < 0:
        raise InputError(f"--seed {args.seed}: must be at least 0.")
    size = tuple(args.size)
    with output_dir(args.save_dir):
        write_scenes(args.save_dir, args.train, args.val, size, args.seed, args.color_masks)
    if args.color_masks:
        print(f"{args.train + args.val} scenes with color masks are in {args.save_dir}")
    else:
        print(f"{args.train} training and {args.val} validation scenes are in {args.save_dir}")

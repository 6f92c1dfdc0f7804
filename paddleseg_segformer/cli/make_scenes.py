"""Draw a small data set of landscapes in ADE20K's own layout, for trials without a download."""

from ..data.scenes import write_scenes
from ..errors import InputError
from ..fs import check_dir_writable
from . import common


def parse_args():
    parser = common.plain_parser(__doc__, "--save_dir data/scenes")
    parser.add_argument("--save_dir", default="data/scenes", help="dataset_root of the new set")
    parser.add_argument("--train", type=int, default=240, help="number of training scenes")
    parser.add_argument("--val", type=int, default=40, help="number of validation scenes")
    parser.add_argument("--size", type=int, nargs=2, default=[192, 144], metavar=("W", "H"))
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other scenes")
    return parser.parse_args()


def main():
    args = parse_args()
    if min(args.size) < 96:
        raise InputError("--size: a scene needs 96 pixels or more a side.")
    if min(args.train, args.val) < 1:
        raise InputError("--train and --val: a data set needs at least one scene of each.")
    if args.seed < 0:
        raise InputError(f"--seed {args.seed}: must not be below 0.")
    check_dir_writable(args.save_dir)
    write_scenes(args.save_dir, args.train, args.val, tuple(args.size), args.seed)
    print(f"{args.train} training and {args.val} validation scenes are in {args.save_dir}")

"""Split images and masks into train.txt, val.txt and test.txt."""

from ..data.prepare import write_lists
from ..log import setup_logging
from . import common


def parse_args():
    parser = common.plain_parser(__doc__, "data/mine images masks")
    parser.add_argument("dataset_root", help="dataset folder, to which the lists are written")
    parser.add_argument("images_dir_name", help="image folder inside dataset_root")
    parser.add_argument("labels_dir_name", help="mask folder inside dataset_root")
    parser.add_argument(
        "--split",
        type=float,
        nargs=3,
        default=(0.7, 0.3, 0.0),
        metavar=("TRAIN", "VAL", "TEST"),
        help="fractions of the images; no list is written for a fraction of 0",
    )
    parser.add_argument(
        "--postfix",
        nargs=2,
        type=str,  # either may be empty
        default=("", ""),
        metavar=("IMAGE", "MASK"),
        help="suffixes of the file names, such as '' _mask for 1.jpg and 1_mask.png",
    )
    parser.add_argument(
        "--separator",
        default=" ",
        metavar="TEXT",
        help="separator of image and mask path in a line (default: a space)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed of the split")
    parser.add_argument("--force", action="store_true", help="overwrite existing lists")
    return parser.parse_args()


def main():
    args = parse_args()
    setup_logging()
    written = write_lists(
        args.dataset_root,
        args.images_dir_name,
        args.labels_dir_name,
        args.split,
        args.postfix,
        args.separator,
        args.seed,
        args.force,
    )
    for split, pairs in written.items():
        print(f"{args.dataset_root}/{split}.txt  {pairs} images")

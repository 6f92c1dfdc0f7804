"""Write train.txt, val.txt and test.txt of a folder of images and a folder of masks."""

from ..data.prepare import write_lists
from ..log import setup_logging
from . import common


def parse_args():
    parser = common.plain_parser(__doc__, "data/mine images masks")
    parser.add_argument("dataset_root", help="folder of the data set, which gets the lists")
    parser.add_argument("images_dir_name", help="folder of the images in it")
    parser.add_argument("labels_dir_name", help="folder of the masks in it")
    parser.add_argument(
        "--split",
        type=float,
        nargs=3,
        default=(0.7, 0.3, 0.0),
        metavar=("TRAIN", "VAL", "TEST"),
        help="shares, 0.7 0.3 0 if not given; of 0 there is no list",
    )
    parser.add_argument(
        "--postfix",
        nargs=2,
        default=("", ""),
        metavar=("IMAGE", "MASK"),
        help="what names end with, such as '' _mask for 1.jpg and 1_mask.png",
    )
    parser.add_argument("--separator", default=" ", help="of image and mask in a line; a space")
    parser.add_argument("--seed", type=int, default=0, help="another one chooses others")
    parser.add_argument("--force", action="store_true", help="replace lists that are there")
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

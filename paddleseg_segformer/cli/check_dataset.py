"""Validate every image and label of a config's datasets.

Prints the share of each class, class weights to choose from, and the values of each band with the
Normalize that fits them.
"""

from ..data.dataset_report import check_dataset_splits
from . import common


def parse_args():
    parser = common.config_parser(
        __doc__,
        "--config configs/segformer_mit-b2_512x512_160k_ade20k.yaml",
    )
    parser.add_argument(
        "--num_workers",
        type=common.positive_int,
        metavar="N",
        help="image-reading threads (default: one per CPU)",
    )
    return parser.parse_args()


def main():
    options = vars(parse_args())
    config = common.setup_with_config(options)
    check_dataset_splits(config, **options)

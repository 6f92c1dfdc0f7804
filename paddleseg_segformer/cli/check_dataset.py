"""Read a whole data set as a configuration would, and report everything that is wrong with it."""

from ..data.validate import full_check
from . import common


def parse_args():
    parser = common.config_parser(
        __doc__,
        "--config configs/segformer_mit-b2_512x512_160k_ade20k.yaml",
    )
    parser.add_argument("--num_workers", type=common.positive, help="threads; one for each CPU")
    return parser.parse_args()


def main():
    options = vars(parse_args())
    config = common.start(options)
    full_check(config, **options)

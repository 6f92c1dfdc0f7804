"""Evaluate a trained model: mIoU, accuracy, and a table of the classes."""

from ..engine import validate
from . import common


def threads(text):
    """The type of --num_workers, for which PaddleSeg's users know 0."""
    return 0 if text == "0" else common.positive(text)


def parse_args():
    parser = common.config_parser(
        __doc__,
        "--config configs/segformer_mit-b2_512x512_160k_ade20k.yaml "
        "--model_path output/best_model/model.pdparams --aug_eval",
    )
    parser.add_argument("--model_path", required=True, metavar="FILE", help="trained weights")
    parser.add_argument(
        "--json", dest="json_path", metavar="FILE", help="write every figure to a file"
    )
    parser.add_argument(
        "--report",
        dest="report_dir",
        metavar="DIR",
        help="write a page about it, report.html, with the worst and the best images",
    )
    parser.add_argument("--num_workers", type=threads, default=2, help="reading threads")
    common.add_test_flags(parser, "--aug_eval")
    return parser.parse_args()


def main():
    options = vars(parse_args())
    config = common.start(options)
    validate(config, **options)

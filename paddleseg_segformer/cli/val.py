"""Evaluate a trained model: mIoU, accuracy and per-class IoU."""

from ..engine import validate
from . import common


def parse_args():
    parser = common.config_parser(
        __doc__,
        "--config configs/segformer_mit-b2_512x512_160k_ade20k.yaml "
        "--model_path output/best_model/model.pdparams --aug_eval",
    )
    parser.add_argument("--model_path", required=True, metavar="FILE", help="trained weights")
    parser.add_argument(
        "--json", dest="json_path", metavar="FILE", help="write all metrics to a JSON file"
    )
    parser.add_argument(
        "--report",
        dest="report_dir",
        metavar="DIR",
        help="write report.html with the metrics and the worst and best images",
    )
    parser.add_argument(
        "--num_workers",
        type=common.non_negative_int,
        default=2,
        metavar="N",
        help="image-reading threads",
    )
    common.add_test_time_flags(parser, "--aug_eval")
    return parser.parse_args()


def main():
    options = vars(parse_args())
    config = common.setup_with_config(options)
    validate(config, **options)

"""Segment images and videos: write overlays, color maps and label maps."""

from ..errors import InputError
from ..inference import predict
from . import common


def parse_args():
    parser = common.model_parser(
        __doc__,
        "--model_path output/best_model --image_path photos/",
    )
    parser.add_argument(
        "--image_path",
        required=True,
        metavar="PATH",
        help="image, video, folder, glob pattern such as 'photos/*.jpg', or text file of paths",
    )
    parser.add_argument("--save_dir", default="output/result", metavar="DIR", help="output folder")
    parser.add_argument(
        "--probabilities",
        action="store_true",
        help="also write the class probabilities as NumPy files",
    )
    common.add_prediction_flags(parser)
    return parser.parse_args()


def main():
    options = common.setup_with_model(vars(parse_args()))
    count, problems = predict(**options)
    for problem in problems:
        common.logger.error(problem)
    common.logger.info("%d images segmented; see %s", count, options["save_dir"])
    if problems:
        raise InputError(
            f"{len(problems)} of {count + len(problems)} files cannot be segmented; see above."
        )

"""Segment images and videos: writes an overlay, a color map and a raw label map of each."""

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
        help="an image, a video, a folder, a pattern such as 'photos/*.jpg', or a list of paths",
    )
    parser.add_argument("--save_dir", default="output/result", help="folder for the pictures")
    parser.add_argument(
        "--probabilities", action="store_true", help="write each class's, as a NumPy file, too"
    )
    common.add_prediction_flags(parser)
    return parser.parse_args()


def main():
    options = common.start_model(vars(parse_args()))
    count, problems = predict(**options)
    for problem in problems:
        common.logger.error(problem)
    common.logger.info("%d images segmented; see %s", count, options["save_dir"])
    if problems:
        raise InputError(
            f"{len(problems)} of {count + len(problems)} files cannot be segmented; see above."
        )

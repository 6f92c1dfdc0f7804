"""Serve a trained model as a web demo and JSON API."""

from ..errors import InputError
from ..inference import Predictor
from . import common


def parse_args():
    parser = common.model_parser(__doc__, "--model_path output/best_model")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0: any free one")
    parser.add_argument(
        "--max_megapixels",
        type=float,
        default=25,
        metavar="N",
        help="maximum image size; see docs/web_demo.md",
    )
    common.add_prediction_flags(parser)
    return parser.parse_args()


def main():
    options = common.setup_with_model(vars(parse_args()))
    try:
        from ..deploy import server
    except ImportError as error:
        raise InputError(
            f"{error.name} is not installed; pip install 'paddleseg-segformer[serve]'."
        ) from error
    address = options.pop("host"), options.pop("port")
    limits = server.Limits(megapixels=options.pop("max_megapixels"))
    predictor = Predictor(options.pop("model_path"), **options)
    server.serve(predictor, *address, limits)

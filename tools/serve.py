"""Segment images on a web page of this machine, and for other programs on it."""

from paddleseg_segformer.deploy import Predictor
from paddleseg_segformer.engine import cli
from paddleseg_segformer.errors import InputError


def parse_args():
    parser = cli.model_parser(__doc__, "--model_path output/best_model")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--port", type=int, default=8000, help="port; 0 takes a free one")
    parser.add_argument(
        "--max_megapixels",
        type=float,
        default=25,
        metavar="N",
        help="of an image; see docs/serve.md",
    )
    cli.add_prediction_flags(parser)
    return parser.parse_args()


def main():
    options = cli.start_model(vars(parse_args()))
    try:
        from paddleseg_segformer.deploy import server
    except ImportError as error:
        raise InputError(
            f"{error.name} is not installed; pip install 'paddleseg-segformer[serve]'."
        ) from error
    address = options.pop("host"), options.pop("port")
    limits = server.Limits(megapixels=options.pop("max_megapixels"))
    predictor = Predictor(options.pop("model_path"), **options)
    server.serve(predictor, *address, limits)


if __name__ == "__main__":
    cli.run(main)

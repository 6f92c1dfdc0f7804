"""Segment images: writes an overlay, a colour map and a raw label map of each."""

from paddleseg_segformer.deploy import predict
from paddleseg_segformer.engine import cli


def parse_args():
    parser = cli.config_parser(
        __doc__,
        "python tools/predict.py --config configs/segformer_mit-b2_512x512_160k_ade20k.yaml "
        "--model_path output/best_model/model.pdparams --image_path photos/",
    )
    parser.add_argument("--model_path", required=True, metavar="FILE", help="trained weights")
    parser.add_argument(
        "--image_path", required=True, metavar="PATH", help="an image, a folder, or a list of paths"
    )
    parser.add_argument("--save_dir", default="output/result", help="folder for the pictures")
    cli.add_protocol_flags(parser, "--aug_pred")
    return parser.parse_args()


def main():
    options = vars(parse_args())
    config = cli.start(options)
    count = predict(config, **options)
    cli.logger.info("%d images segmented; see %s", count, options["save_dir"])


if __name__ == "__main__":
    cli.run(main)

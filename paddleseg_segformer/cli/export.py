"""Export a trained model to Paddle Inference or ONNX.

The predictions of the export and of the original model are compared on an image.
"""

from ..deploy import OUTPUT_OPS, export
from ..deploy.quantize import MAX_IMAGES, MIN_INT8_AGREEMENT
from ..errors import InputError
from . import common


def parse_args():
    parser = common.model_parser(
        __doc__,
        "--model_path output/best_model --format onnx --image_path a.jpg",
    )
    parser.add_argument(
        "--image_path",
        metavar="PATH",
        help="image on which the export is compared with the original model (default: the first "
        "validation image if the dataset is there, else a drawn one); with --int8 a folder, "
        "pattern or list of images",
    )
    parser.add_argument(
        "--save_dir", default="output/inference_model", metavar="DIR", help="output folder"
    )
    parser.add_argument(
        "--format",
        choices=["paddle", "onnx"],
        help="format of the export (default: paddle; with --int8 onnx)",
    )
    parser.add_argument(
        "--input_shape",
        nargs=4,
        type=int,
        metavar=("N", "C", "H", "W"),
        help="fixed input shape, such as 1 3 512 512, which is faster (default: any image size)",
    )
    parser.add_argument(
        "--output_op",
        default="argmax",
        choices=OUTPUT_OPS,
        help="output of the graph: label map, class probabilities or logits",
    )
    parser.add_argument(
        "--with_normalize",
        action="store_true",
        help="include the normalization in the graph, which then takes values of 0 to 255",
    )
    parser.add_argument(
        "--half", action="store_true", help="float16 weights and arithmetic, ONNX only"
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="quantize to int8, ONNX only: calibrated on the images of --image_path (at most "
        f"{MAX_IMAGES}, evenly spaced), except every fourth, on which int8 and float are compared",
    )
    parser.add_argument(
        "--min_agreement",
        type=float,
        metavar="SHARE",
        help="with --int8, write nothing if int8 and float have the same class on a smaller share "
        f"of the pixels, 0 to 1 (default: {MIN_INT8_AGREEMENT})",
    )
    return parser.parse_args()


def main():
    options = common.setup_with_model(vars(parse_args()))
    device = options.pop("device")
    if device not in (None, "cpu"):
        raise InputError(f"--device {device}: models are exported on the CPU.")
    agreement = export(**options)
    images, reference = options["image_path"] or "that image", "original model"
    if options["int8"]:
        images, reference = f"the held-out images of {images}", "float graph"
    common.logger.info(
        "Exported to %s; it agrees with the %s on %.3f%% of the pixels of %s",
        options["save_dir"],
        reference,
        100 * agreement,
        images,
    )

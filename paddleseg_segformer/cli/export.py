"""Export a trained model to Paddle Inference or ONNX.

The predictions of the export and of the original model are compared on an image.
"""

from ..deploy import OUTPUT_OPS, export
from ..errors import InputError
from . import common


def parse_args():
    parser = common.model_parser(
        __doc__,
        "--model_path output/best_model --format onnx --image_path a.jpg",
    )
    parser.add_argument(
        "--image_path",
        metavar="FILE",
        help="image on which the export is compared with the original model (default: the first "
        "validation image if the dataset is there, else a drawn one)",
    )
    parser.add_argument(
        "--save_dir", default="output/inference_model", metavar="DIR", help="output folder"
    )
    parser.add_argument(
        "--format", default="paddle", choices=["paddle", "onnx"], help="format of the export"
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
    return parser.parse_args()


def main():
    options = common.setup_with_model(vars(parse_args()))
    device = options.pop("device")
    if device not in (None, "cpu"):
        raise InputError(f"--device {device}: models are exported on the CPU.")
    agreement = export(**options)
    common.logger.info(
        "Exported to %s; it agrees with the original model on %.3f%% of the pixels of %s",
        options["save_dir"],
        100 * agreement,
        options["image_path"] or "that image",
    )

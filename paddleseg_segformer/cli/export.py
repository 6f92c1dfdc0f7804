"""Export a trained model, for Paddle Inference or as ONNX, and compare it with the model."""

from ..deploy import OUTPUT_OPS, export
from ..errors import InputError
from . import common


def parse_args():
    parser = common.model_parser(
        __doc__,
        "--model_path output/best_model --format onnx --image_path a.jpg",
    )
    parser.add_argument(
        "--image_path", required=True, metavar="FILE", help="what model and export are compared on"
    )
    parser.add_argument("--save_dir", default="output/inference_model", help="folder to write to")
    parser.add_argument("--format", default="paddle", choices=["paddle", "onnx"])
    parser.add_argument(
        "--input_shape",
        nargs=4,
        type=int,
        metavar=("N", "C", "H", "W"),
        help="1 3 H W: one size for all images, which is faster; else any",
    )
    parser.add_argument(
        "--output_op",
        default="argmax",
        choices=OUTPUT_OPS,
        help="what the graph gives: label maps, probabilities or logits",
    )
    parser.add_argument(
        "--with_normalize",
        action="store_true",
        help="let the graph normalize: it then takes RGB values from 0 to 255",
    )
    parser.add_argument("--half", action="store_true", help="float16 weights and arithmetic, ONNX")
    return parser.parse_args()


def main():
    options = common.start_model(vars(parse_args()))
    device = options.pop("device")
    if device not in (None, "cpu"):
        raise InputError(f"--device {device}: models are exported on the CPU.")
    agreement = export(**options)
    common.logger.info(
        "Exported to %s; the class of %.3f%% of %s's pixels is the model's",
        options["save_dir"],
        100 * agreement,
        options["image_path"],
    )

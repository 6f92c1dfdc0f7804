"""Convert a SegFormer checkpoint of another project."""

from ..weights import convert_checkpoint
from . import common


def parse_args():
    parser = common.plain_parser(__doc__, "segformer.b2.512x512.ade.160k.pth b2.pdparams")
    parser.add_argument(
        "source",
        help="file, URL, or name or folder of a Hugging Face repository, from NVlabs, "
        "mmsegmentation, PaddleViT, PaddleSeg or Hugging Face; the format is detected",
    )
    parser.add_argument("target", help="output file, .pdparams or .safetensors")
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    return parser.parse_args()


def main():
    args = parse_args()
    checkpoint, tensors, parameters = convert_checkpoint(args.source, args.target, args.force)
    epsilon = checkpoint.norm_epsilon or "null (the paper's mix)"
    if checkpoint.format == "paddleseg":
        epsilon = "as in the config it was trained with"
    print(f"source format  {checkpoint.format}")
    print(f"architecture   {checkpoint.architecture}")
    print(f"tensors        {tensors}")
    print(f"parameters     {parameters / 1e6:.1f} M")
    print(f"norm_epsilon   {epsilon}: set it in the config's backbone to get the same outputs")
    print(f"written        {args.target}")

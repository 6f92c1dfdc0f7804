"""Train a model from a config."""

from ..engine import train
from . import common


def parse_args():
    parser = common.config_parser(
        __doc__,
        "--config configs/segformer_mit-b2_512x512_160k_ade20k.yaml --do_eval --use_vdl",
    )
    group = parser.add_argument_group("config overrides")
    group.add_argument("--iters", type=common.positive_int, metavar="N", help="iterations")
    group.add_argument(
        "--batch_size", type=common.positive_int, metavar="N", help="batch size per device"
    )
    group.add_argument("--learning_rate", type=float, metavar="LR", help="base learning rate")

    group = parser.add_argument_group("optimization")
    group.add_argument(
        "--grad_accum_steps",
        "--accumulate",
        type=common.positive_int,
        default=1,
        metavar="N",
        help="gradient accumulation steps: micro-batches of batch_size per optimizer step",
    )
    group.add_argument(
        "--freeze_backbone",
        action="store_true",
        help="train only the decode head; the backbone stays in evaluation mode",
    )
    group.add_argument(
        "--use_ema", action="store_true", help="keep an exponential moving average of the weights"
    )
    group.add_argument(
        "--precision",
        default="fp32",
        choices=["fp32", "fp16", "bf16"],
        help="fp16 and bf16: mixed precision, on a GPU",
    )
    group.add_argument(
        "--amp_level",
        default="O1",
        choices=["O1", "O2"],
        help="mixed-precision level; only O1 is supported",
    )
    group.add_argument(
        "--no_tf32",
        action="store_true",
        help="full float32 precision on GPUs that would compute products in TF32; slower",
    )
    group.add_argument(
        "--deterministic",
        action="store_true",
        help="deterministic operators on a GPU, as far as Paddle has them; slower",
    )
    group.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="random seed (default: 0, or that of the resumed checkpoint)",
    )

    group = parser.add_argument_group("data loading")
    group.add_argument(
        "--num_workers",
        type=int,
        metavar="N",
        help="data-loading workers of each process (default: 0 on CPU; with GPUs 1 to 8, for which "
        "the processes share the CPUs)",
    )
    group.add_argument(
        "--on_bad_sample",
        default="error",
        choices=["error", "skip"],
        help="on an unreadable sample: stop, or substitute another",
    )

    group = parser.add_argument_group("checkpoints, evaluation and logs")
    group.add_argument("--save_dir", default="output", metavar="DIR", help="output folder")
    group.add_argument(
        "--resume", action="store_true", help="resume from save_dir's latest complete checkpoint"
    )
    group.add_argument("--resume_model", metavar="DIR", help="resume from a checkpoint DIR/iter_N")
    group.add_argument(
        "--save_interval",
        type=common.positive_int,
        default=1000,
        metavar="N",
        help="iterations between checkpoints",
    )
    group.add_argument(
        "--keep_checkpoint_max",
        type=int,
        default=5,
        metavar="N",
        help="number of checkpoints to keep; 0 keeps all",
    )
    group.add_argument(
        "--do_eval",
        action="store_true",
        help="evaluate at each checkpoint and keep the best model",
    )
    group.add_argument(
        "--early_stop_intervals",
        type=common.positive_int,
        metavar="N",
        help="stop after N evaluations in a row without a better mIoU, with --do_eval",
    )
    group.add_argument(
        "--log_iters",
        type=common.positive_int,
        default=10,
        metavar="N",
        help="iterations between log lines",
    )
    group.add_argument("--use_vdl", action="store_true", help="write VisualDL logs to save_dir")
    return parser.parse_args()


def main():
    options = vars(parse_args())
    config = common.setup_with_config(options)
    train(config, **options)

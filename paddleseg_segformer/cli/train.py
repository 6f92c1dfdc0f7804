"""Train a model as a configuration describes it."""

from ..engine import train
from . import common


def parse_args():
    parser = common.config_parser(
        __doc__,
        "--config configs/segformer_mit-b2_512x512_160k_ade20k.yaml --do_eval --use_vdl",
    )
    recipe = parser.add_argument_group("in place of the config's own")
    recipe.add_argument("--iters", type=common.positive, help="iterations")
    recipe.add_argument("--batch_size", type=common.positive, help="images a step, on each device")
    recipe.add_argument("--learning_rate", type=float, help="base learning rate")
    recipe.add_argument(
        "--grad_accum_steps",
        "--accumulate",
        type=common.positive,
        default=1,
        metavar="N",
        help="batches a step: the gradient of a batch N times as large, in the memory of one",
    )
    recipe.add_argument(
        "--freeze_backbone",
        action="store_true",
        help="train the decode head alone; the backbone runs as in evaluation",
    )
    run = parser.add_argument_group("the run")
    run.add_argument("--save_dir", default="output", help="folder for checkpoints and logs")
    run.add_argument(
        "--resume", action="store_true", help="go on from save_dir's newest whole checkpoint"
    )
    run.add_argument("--resume_model", metavar="DIR", help="go on from a checkpoint, DIR/iter_N")
    run.add_argument("--do_eval", action="store_true", help="evaluate at each save, keep the best")
    run.add_argument(
        "--save_interval", type=common.positive, default=1000, help="iterations between saves"
    )
    run.add_argument("--keep_checkpoint_max", type=int, default=5, help="how many; 0 keeps all")
    run.add_argument(
        "--log_iters", type=common.positive, default=10, help="iterations between log lines"
    )
    run.add_argument("--use_vdl", action="store_true", help="write VisualDL scalars to save_dir")
    run.add_argument("--use_ema", action="store_true", help="average the weights as well")
    run.add_argument("--seed", type=int, help="of weights, order and augmentation; else 0")
    run.add_argument(
        "--num_workers", type=int, help="data processes; 0 on a CPU, up to 8 beside a GPU"
    )
    run.add_argument(
        "--on_bad_sample",
        default="error",
        choices=["error", "skip"],
        help="what an image that cannot be read does; skip takes another one in its place",
    )
    run.add_argument("--precision", default="fp32", choices=["fp32", "fp16", "bf16"])
    run.add_argument("--amp_level", default="O1", choices=["O1", "O2"])
    return parser.parse_args()


def main():
    options = vars(parse_args())
    config = common.start(options)
    train(config, **options)

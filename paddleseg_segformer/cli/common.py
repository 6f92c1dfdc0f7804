"""What the command-line tools share: common flags, start-up, exit codes."""

import argparse
import re
import signal
import sys

import paddle

from .. import device
from ..config import load_config
from ..errors import InputError, RunError
from ..inference import BACKENDS
from ..log import logger, setup_logging

EXIT_INPUT, EXIT_FAILED = 2, 1
# Flags of PaddleSeg's tools that ours have no use for, and what to do instead.
PADDLESEG = {
    "--auc_roc": "leave it out; mIoU, accuracy and each class's IoU are given",
    "--benchmark": "benchmarks/benchmark.py measures",
    "--cpu_threads": "set OMP_NUM_THREADS; otherwise all cores work",
    "--custom_color": "give each class its color in labels.txt of the dataset_root",
    "--data_format": "leave it out; the models take NCHW",
    "--enable_mkldnn": "leave it out; on a CPU, OpenVINO runs what --format onnx exports",
    "--for_fd": "leave it out; the files are model.json, model.pdiparams and deploy.yaml",
    "--format": "leave it out; images and masks are known by their endings",
    "--label_class": "write the classes into labels.txt of the dataset_root",
    "--profiler_options": "benchmarks/benchmark.py measures a step",
    "--repeats": "leave it out; --iters alone says how long a run is",
    "--use_multilabel": "leave it out; a pixel has one class here",
    "--use_trt": "leave it out; predict.py's --backend has the choice",
    "--with_argmax": "leave it out; the export's --output_op is known",
}


def positive(text):
    """The type of flags that count something: a whole number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return number


def plain_parser(description, example):
    """An argument parser that shows the command as it was typed; ``example`` is what follows it."""
    return _Parser(
        prog=sys.argv[0] if " " in sys.argv[0] else f"python {sys.argv[0]}",
        description=description,
        epilog=f"example:\n  %(prog)s {example}",
        formatter_class=_Help,
    )


def model_parser(description, example):
    """An argument parser with the flags that every tool has which uses a trained model."""
    parser = config_parser(description, example, required=False)
    parser.add_argument(
        "--model_path",
        required=True,
        metavar="PATH",
        help="a checkpoint's folder or file, or an exported model; the config is needed only "
        "where it does not hold it",
    )
    return parser


def config_parser(description, example, required=True):
    """An argument parser with the flags that every tool has which reads a configuration."""
    parser = plain_parser(description, example)
    parser.add_argument("--config", required=required, metavar="FILE", help="configuration, YAML")
    parser.add_argument(
        "--device", help="gpu, gpu:N, cpu, …; the GPU where there is one, else the CPU"
    )
    parser.add_argument(
        "--opts",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="override keys of the config, such as model.backbone.pretrained=null",
    )
    return parser


def add_test_flags(parser, augment):
    """Flags of how an image is looked at; ``augment`` names the one for several scales.

    A flag that is not given leaves no trace, so that the config's ``test_config`` decides.
    """
    group = parser.add_argument_group("how each image is looked at (else as the config says)")
    switch = {"action": "store_true", "default": argparse.SUPPRESS}
    pair = {"nargs": 2, "type": int, "metavar": ("W", "H"), "default": argparse.SUPPRESS}
    several = "several scales; alone it means the paper's six, each also mirrored"
    group.add_argument(augment, dest="aug_eval", **switch, help=several)
    group.add_argument(
        "--scales",
        nargs="+",
        type=float,
        metavar="S",
        default=argparse.SUPPRESS,
        help=f"with {augment}",
    )
    group.add_argument("--flip_horizontal", **switch, help=f"with {augment}")
    group.add_argument("--flip_vertical", **switch, help=f"with {augment}")
    group.add_argument("--is_slide", **switch, help="in sliding windows")
    group.add_argument("--crop_size", **pair, help="of a window")
    group.add_argument("--stride", **pair, help="from window to window")


def add_prediction_flags(parser):
    """Flags of tools that show a model images: ``Predictor``'s backend, and the test_config's."""
    parser.add_argument(
        "--backend", "--runtime", choices=BACKENDS, help="of an exported model; the fastest"
    )
    add_test_flags(parser, "--aug_pred")


def start(options):
    """Set up log, device and CPU, and read the configuration.

    Args:
        options: The parsed flags by name; those that have had their effect here are taken out.

    Returns:
        PaddleSeg's ``Config``.
    """
    setup_logging()
    device.tune_cpu()
    wanted = options.pop("device")
    try:
        name = device.set_device(wanted)
    except ValueError as error:
        raise InputError(str(error)) from error
    if name == "cpu" and wanted is None:
        logger.warning(
            "No GPU found: running on the CPU, which is fit for trials and small images; "
            "training on a full data set needs a GPU build of Paddle."
        )
    overrides = {key: options.pop(key, None) for key in ("iters", "batch_size", "learning_rate")}
    return load_config(options.pop("config"), options.pop("opts"), **overrides)


def start_model(options):
    """Set up the log, and read the configuration if one is given.

    Args:
        options: The parsed flags by name.

    Returns:
        The same, ``config`` being PaddleSeg's ``Config`` or None, without ``opts``.

    Raises:
        InputError: The configuration is at fault, or there is none that ``--opts`` could change.
    """
    setup_logging()
    opts = options.pop("opts")
    if options["config"] is not None:
        options["config"] = load_config(options["config"], opts)
    elif opts:
        raise InputError("--opts changes a config: give --config, too.")
    return options


def run(main):
    """Run a tool's ``main()``, and exit: 0 done, 2 the input is at fault, 1 anything else.

    On SIGTERM it tidies up, as on Ctrl-C; a second one ends it at once.
    """
    signal.signal(signal.SIGTERM, _end)  # in place of Paddle's, which prints a stack of C++
    try:
        if paddle.__version__.startswith(("1.", "2.")):
            raise InputError(
                f"PaddlePaddle {paddle.__version__}: is too old; install 3.0 or newer, as with "
                "pip install 'paddlepaddle>=3.0', or a GPU build."
            )
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_INPUT)
    except (RunError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        sys.exit(130)


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        """In a sentence, where argparse would print the usage first, which may fill a screen.

        It says what to do instead of a flag that PaddleSeg's tools have and ours have not.
        """
        words = re.split("[ =]", message)
        told = [f"; {f} is PaddleSeg's: {PADDLESEG[f]}" for f in PADDLESEG if f in words]
        raise InputError(f"{message}{''.join(told) or '; see --help'}.")


def _end(number, _):
    signal.signal(number, signal.SIG_DFL)
    sys.exit(128 + number)


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults that say something, and the example as it is written."""

    def _get_help_string(self, action):
        if action.default in (None, False, [], argparse.SUPPRESS):
            return action.help
        return super()._get_help_string(action)

"""Common flags, setup and exit codes of the command-line tools."""

import argparse
import os
import re
import signal
import sys

from .. import device
from ..config import load_config
from ..errors import InputError, RunError
from ..inference import BACKENDS
from ..log import logger, setup_logging

EXIT_INPUT, EXIT_FAILED = 2, 1
# Flags of PaddleSeg's tools that these tools do not have, and what to do instead.
PADDLESEG_ONLY_FLAGS = {
    "--auc_roc": "remove it; mIoU, accuracy and per-class IoU are always computed",
    "--benchmark": "use benchmarks/benchmark.py",
    "--cpu_threads": "set OMP_NUM_THREADS (default: all cores)",
    "--custom_color": "add each class's color to labels.txt in dataset_root",
    "--data_format": "remove it; the models take NCHW",
    "--device_id": "select GPU N with --device gpu:N",
    "--enable_mkldnn": "remove it; for fast CPU inference use export --format onnx and OpenVINO",
    "--for_fd": "remove it; exports are written as model.json, model.pdiparams and deploy.yaml",
    "--format": "remove it; images and masks are recognized by their file extensions",
    "--input_shape": "give it to export",
    "--label_class": "write the class names into labels.txt in dataset_root",
    "--output_op": "give it to export",
    "--profiler_options": "use benchmarks/benchmark.py to time a training step",
    "--repeats": "remove it; set the length of the run with --iters",
    "--to_static_training": "remove it; training is dynamic, and export makes a static graph",
    "--use_multilabel": "remove it; multi-label segmentation is not supported",
    "--use_trt": "remove it; choose the inference backend with predict's --backend",
    "--with_argmax": "remove it; the export records its output, see export's --output_op",
}


def positive_int(text):
    """The argparse type of counts from 1."""
    return _int_from(1, text)


def non_negative_int(text):
    """The argparse type of counts from 0."""
    return _int_from(0, text)


def _not_empty(text):
    """Refuse an empty argument, as an unset variable of a shell gives: a path "" would be "."."""
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return text


def _int_from(minimum, text):
    try:
        value = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number") from error
    if value < minimum:
        raise argparse.ArgumentTypeError(f"{text} is below {minimum}")
    if value >= 1 << 63:
        raise argparse.ArgumentTypeError(f"{text} is not below 2^63")
    return value


def plain_parser(description, example):
    """An argument parser whose help shows ``example``, the arguments of a typical call."""
    return _Parser(
        prog=sys.argv[0] if " " in sys.argv[0] else f"python {sys.argv[0]}",
        description=description,
        epilog=f"example:\n  %(prog)s {example}",
        formatter_class=_HelpFormatter,
    )


def config_parser(description, example, required=True):
    """An argument parser with the flags of every tool that reads a config."""
    parser = plain_parser(description, example)
    parser.add_argument("--config", required=required, metavar="FILE", help="YAML config")
    parser.add_argument("--device", help="gpu, gpu:N, cpu, … (default: gpu if available, else cpu)")
    parser.add_argument(
        "--opts",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="config overrides, such as model.backbone.pretrained=null",
    )
    return parser


def model_parser(description, example):
    """An argument parser with the flags of every tool that runs a trained model."""
    parser = config_parser(description, example, required=False)
    parser.add_argument(
        "--model_path",
        required=True,
        metavar="PATH",
        help="checkpoint folder or file, its URL or the name of a Hugging Face repository, or "
        "exported model; needs --config only if no config is stored with it",
    )
    return parser


def add_test_time_flags(parser, tta_flag):
    """Add the flags that override ``test_config``; those not given are absent from the result.

    Args:
        parser: The argument parser.
        tta_flag: PaddleSeg's name of the flag for test-time augmentation in this tool.
    """
    group = parser.add_argument_group("test-time options (default: the config's test_config)")
    switch = {"action": "store_true", "default": argparse.SUPPRESS}
    size = {"nargs": 2, "type": int, "metavar": ("W", "H"), "default": argparse.SUPPRESS}
    group.add_argument(
        tta_flag,
        dest="aug_eval",
        **switch,
        help="test-time augmentation, multi-scale + flip; without --scales and flips: 6 scales and "
        "horizontal flip",
    )
    group.add_argument(
        "--scales",
        nargs="+",
        type=float,
        metavar="S",
        default=argparse.SUPPRESS,
        help=f"image scales, with {tta_flag}",
    )
    group.add_argument("--flip_horizontal", **switch, help=f"flip left to right, with {tta_flag}")
    group.add_argument("--flip_vertical", **switch, help=f"flip top to bottom, with {tta_flag}")
    group.add_argument("--is_slide", **switch, help="sliding-window inference")
    group.add_argument("--crop_size", **size, help="window size of --is_slide, pixels")
    group.add_argument("--stride", **size, help="window stride of --is_slide, pixels")


def add_prediction_flags(parser):
    """Add the flags of ``Predictor``: inference backend and test-time options."""
    parser.add_argument(
        "--backend",
        "--runtime",
        choices=BACKENDS,
        help="inference backend of an exported model (default: the fastest one installed)",
    )
    add_test_time_flags(parser, "--aug_pred")


def setup_with_config(options):
    """Set up logging, CPU and device, and load the config.

    Args:
        options: The parsed flags by name; those used here are removed.

    Returns:
        PaddleSeg's ``Config``.

    Raises:
        InputError: The device or the config is invalid.
    """
    setup_logging()
    device.tune_cpu()
    requested = options.pop("device")
    try:
        selected = device.set_device(requested)
    except ValueError as error:
        raise InputError(str(error)) from error
    if selected == "cpu" and requested is None:
        logger.warning(
            "No GPU found: running on the CPU, which is fast enough for trials and small images; "
            "training on a full dataset needs a GPU build of Paddle."
        )
    overrides = {key: options.pop(key, None) for key in ("iters", "batch_size", "learning_rate")}
    return load_config(options.pop("config"), options.pop("opts"), **overrides)


def setup_with_model(options):
    """Set up logging and load the config, if one is given.

    Args:
        options: The parsed flags of a ``model_parser`` by name.

    Returns:
        The same without ``opts``, and with PaddleSeg's ``Config`` or None as ``config``.

    Raises:
        InputError: The config is invalid, or ``--opts`` is given without ``--config``.
    """
    setup_logging()
    opts = options.pop("opts")
    if options["config"] is not None:
        options["config"] = load_config(options["config"], opts)
    elif opts:
        raise InputError("--opts overrides keys of a config: give --config, too.")
    return options


def run(main):
    """Call ``main()`` and exit: 0 on success, 2 on invalid input, 1 on any other error.

    SIGTERM raises ``SystemExit``, so that ``finally`` blocks run; a second one kills the process.
    """
    signal.signal(signal.SIGTERM, _exit_on_signal)  # Paddle's handler prints a C++ stack trace
    try:
        try:
            main()
        except OSError:
            _flush_output("\n")  # if the error was that of a print, this one fails, too
            raise
        except SystemExit as end:  # of --help, whose errors argparse ignores
            if not end.code:
                _flush_output()
            raise
        _flush_output()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_INPUT)
    except (RunError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except OSError as error:
        if error.filename is None:
            raise
        # The file is at fault, not the program: a name that is too long, no permission, …
        message = InputError(f"{os.fsdecode(error.filename)}: {error.strerror}.")
        print(f"error: {message}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        sys.exit(130)


def _flush_output(text=""):
    """Write what was printed, and a text; a RunError if standard output is full or closed."""
    try:
        if sys.stdout is not None:
            print(text, end="", flush=True)
    except OSError as error:
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), sys.stdout.fileno())  # Python flushes once more at its end
        raise RunError(f"Standard output cannot be written ({error.strerror}).") from error


def _exit_on_signal(number, _):
    signal.signal(number, signal.SIG_DFL)
    sys.exit(128 + number)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options):
        super().__init__(**options)
        self.register("type", None, _not_empty)  # of all arguments that have no other type

    def error(self, message):
        """Raise ``InputError`` instead of printing the usage, which can fill a screen."""
        words = re.split("[ =]", message)
        hints = [
            f"; {flag} is a PaddleSeg-only flag: {hint}"
            for flag, hint in PADDLESEG_ONLY_FLAGS.items()
            if flag in words
        ]
        raise InputError(f"{message}{''.join(hints) or '; see --help'}.")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and the value of a flag with an alias once, as Python 3.13 does."""

    def _get_help_string(self, action):
        values = action.default if isinstance(action.default, (list, tuple)) else [action.default]
        default = " ".join(map(str, values)).strip()
        if default in ("", "None", "False", argparse.SUPPRESS):
            return action.help
        return f"{action.help} (default: {default})"

    def _format_action_invocation(self, action):
        if len(action.option_strings) < 2 or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"

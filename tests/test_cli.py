"""The command line without the work: help, flags and their values, exit codes."""

import functools
import importlib
import inspect
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from run_tools import CONFIG, ROOT

from paddleseg_segformer.cli import ALIASES, COMMANDS, common, main
from paddleseg_segformer.engine.options import TrainOptions
from paddleseg_segformer.errors import InputError, RunError

MODEL = "--model_path a"


@pytest.fixture(autouse=True)
def _unchanged_process(monkeypatch):
    """Neither logging, device nor signal handlers of the tests' process change."""
    before = signal.getsignal(signal.SIGTERM)
    for module in (common, command_module("split_dataset_list")):
        monkeypatch.setattr(module, "setup_logging", lambda: None)
    monkeypatch.setattr(common.device, "set_device", lambda name: name)
    yield
    signal.signal(signal.SIGTERM, before)


def command_module(command):
    return importlib.import_module(f"paddleseg_segformer.cli.{ALIASES.get(command, command)}")


def help_of(run, monkeypatch, capsys, *arguments):
    """What ``run()`` prints, which must end with exit code 0."""
    monkeypatch.setattr(sys, "argv", [*arguments, "--help"])
    with pytest.raises(SystemExit) as end:
        run()
    assert not end.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("command", [*COMMANDS, *ALIASES])
def test_tools_and_segformer_are_the_same_commands(command, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    script = f"tools/{command}.py"
    run_script = functools.partial(runpy.run_path, script, run_name="__main__")
    tool = help_of(run_script, monkeypatch, capsys, script)
    installed = help_of(main, monkeypatch, capsys, "/usr/bin/segformer", command)
    assert tool.startswith(f"usage: python {script} ")
    assert installed.startswith(f"usage: segformer {command} ")
    tool = tool.replace(f"python {script}", f"segformer {command}")
    assert tool.split() == installed.split()  # the lengths of the names wrap the usage differently


def test_every_command_is_a_tool():
    assert {path.stem for path in (ROOT / "tools").glob("*.py")} == {*COMMANDS, *ALIASES}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_flag_once(command, monkeypatch, capsys):
    text = help_of(main, monkeypatch, capsys, "segformer", command)
    source = inspect.getsource(command_module(command)) + inspect.getsource(common)
    flags = set(re.findall(r'"(--\w+)"', re.sub(r"(?s)PADDLESEG_ONLY_FLAGS = .*?\n}", "", source)))
    entries = re.findall(r"(?m)^  (--\w+(?:, --\w+)?)\b(.*(?:\n {10,}.*)*)", text)
    names = [name for entry, _ in entries for name in entry.split(", ")]
    assert len(names) == len(set(names)) and set(names) <= flags
    own = set(re.findall(r'"(--\w+)"', inspect.getsource(command_module(command))))
    assert own <= set(names)
    for entry, explanation in entries:
        metavar_and_help = re.split(r"\n| {2,}", explanation, maxsplit=1)
        assert len(metavar_and_help) == 2 and metavar_and_help[1].strip(), entry


def test_the_overview_lists_the_commands_and_their_summaries(monkeypatch, capsys):
    overviews = []
    for arguments in ([], ["-h"], ["--help"]):
        monkeypatch.setattr(sys, "argv", ["segformer", *arguments])
        main()
        overviews.append(capsys.readouterr().out)
    assert overviews[0] == overviews[1] == overviews[2]
    found = dict(re.findall(r"(?m)^  (\w+) +(\S.*\.)$", overviews[0]))
    expected = {name: command_module(name).__doc__.split("\n")[0] for name in COMMANDS}
    assert found == expected


# Command: its library function, the arguments that it requires, other flags, and the values that
# the function then gets.
CALLS = {
    "train": (
        "train",
        f"--config {CONFIG}",
        "--iters 7 --batch_size 3 --learning_rate 0.5 --grad_accum_steps 2 --freeze_backbone "
        "--use_ema --precision bf16 --amp_level O2 --deterministic --no_tf32 --seed 4 "
        "--num_workers 1 --on_bad_sample skip --save_dir here --resume --resume_model there "
        "--save_interval 9 --keep_checkpoint_max 8 "
        "--early_stop_intervals 5 --do_eval --log_iters 6 --use_vdl --device cpu "
        "--opts model.dropout=0.25",
        {
            "grad_accum_steps": 2,
            "freeze_backbone": True,
            "use_ema": True,
            "precision": "bf16",
            "amp_level": "O2",
            "deterministic": True,
            "no_tf32": True,
            "seed": 4,
            "num_workers": 1,
            "on_bad_sample": "skip",
            "save_dir": "here",
            "resume": True,
            "resume_model": "there",
            "save_interval": 9,
            "keep_checkpoint_max": 8,
            "early_stop_intervals": 5,
            "do_eval": True,
            "log_iters": 6,
            "use_vdl": True,
        },
    ),
    "val": (
        "validate",
        f"--config {CONFIG} {MODEL}",
        "--json b --report c --num_workers 0 --aug_eval --scales 0.5 1 --flip_horizontal "
        "--flip_vertical --is_slide --crop_size 8 6 --stride 4 3 --device cpu "
        "--opts model.dropout=0.25",
        {
            "model_path": "a",
            "json_path": "b",
            "report_dir": "c",
            "num_workers": 0,
            "aug_eval": True,
            "scales": [0.5, 1.0],
            "flip_horizontal": True,
            "flip_vertical": True,
            "is_slide": True,
            "crop_size": [8, 6],
            "stride": [4, 3],
        },
    ),
    "predict": (
        "predict",
        f"{MODEL} --image_path b",
        "--save_dir c --probabilities --backend onnxruntime --aug_pred --scales 2 "
        "--flip_horizontal --flip_vertical --is_slide --crop_size 8 6 --stride 4 3 --device cpu "
        f"--config {CONFIG} --opts model.dropout=0.25",
        {
            "model_path": "a",
            "image_path": "b",
            "save_dir": "c",
            "probabilities": True,
            "backend": "onnxruntime",
            "aug_eval": True,
            "scales": [2.0],
            "flip_horizontal": True,
            "flip_vertical": True,
            "is_slide": True,
            "crop_size": [8, 6],
            "stride": [4, 3],
            "device": "cpu",
        },
    ),
    "export": (
        "export",
        MODEL,
        "--image_path b --save_dir c --format onnx --input_shape 1 3 8 6 --output_op softmax "
        "--int8 --min_agreement 0.5 "
        f"--with_normalize --half --device cpu --config {CONFIG} --opts model.dropout=0.25",
        {
            "model_path": "a",
            "image_path": "b",
            "save_dir": "c",
            "format": "onnx",
            "input_shape": [1, 3, 8, 6],
            "output_op": "softmax",
            "with_normalize": True,
            "half": True,
            "int8": True,
            "min_agreement": 0.5,
        },
    ),
    "check_dataset": (
        "check_dataset_splits",
        f"--config {CONFIG}",
        "--num_workers 3 --device cpu --opts model.dropout=0.25",
        {"num_workers": 3},
    ),
    "split_dataset_list": (
        "write_lists",
        "a b c",
        "--split 0.5 0.25 0.25 --postfix d e --separator , --seed 4 --force",
        {
            "root": "a",
            "images": "b",
            "masks": "c",
            "fractions": [0.5, 0.25, 0.25],
            "postfix": ["d", "e"],
            "separator": ",",
            "seed": 4,
            "force": True,
        },
    ),
    "masks_from_colors": (
        "convert_color_masks",
        "a b c",
        "--ignore_others --force",
        {"root": "a", "colored": "b", "target": "c", "ignore_others": True, "force": True},
    ),
    "convert": (
        "convert_checkpoint",
        "a b",
        "--force",
        {"source": "a", "target": "b", "force": True},
    ),
    "make_scenes": (
        "write_scenes",
        "--save_dir {tmp}",
        "--train 5 --val 6 --size 100 120 --seed 4 --color_masks",
        {
            "root": "{tmp}",
            "train": 5,
            "val": 6,
            "size": (100, 120),
            "seed": 4,
            "color_masks": True,
        },
    ),
}
DEFAULTS = {"train": TrainOptions}  # whose names and defaults the library function has


class CalledError(Exception):
    pass


def call(command, text, monkeypatch, tmp_path):
    """The library function of a command, and the arguments by name with which it is called."""
    name, arguments = CALLS[command][0], {}
    module = command_module(command)
    function = getattr(module, name)

    def record(*given, **named):
        bound = inspect.signature(function).bind(*given, **named).arguments
        arguments.update({**bound.pop("options", {}), **bound})
        raise CalledError

    with monkeypatch.context() as patch, pytest.raises(CalledError):
        patch.setattr(module, name, record)
        patch.setattr(sys, "argv", ["segformer", *shlex.split(text.format(tmp=tmp_path))])
        module.main()
    return function, arguments


@pytest.mark.parametrize("command", CALLS)
def test_flags_reach_the_library(command, monkeypatch, tmp_path):
    _, required, flags, expected = CALLS[command]
    _, found = call(command, f"{required} {flags}", monkeypatch, tmp_path)
    config = found.pop("config", None)
    expected = {k: str(tmp_path) if v == "{tmp}" else v for k, v in expected.items()}
    assert found == expected
    if config is not None:
        assert config.dic["model"]["dropout"] == 0.25
    if command == "train":
        rate = config.dic["lr_scheduler"]["learning_rate"]
        assert (config.iters, config.batch_size, rate) == (7, 3, 0.5)
    known = set(re.findall(r'"(--\w+)"', inspect.getsource(command_module(command))))
    assert known - {"--runtime", "--accumulate"} <= set(f"{required} {flags}".split())


@pytest.mark.parametrize("command", CALLS)
def test_without_flags_the_defaults_are_the_librarys(command, monkeypatch, tmp_path):
    function, found = call(command, CALLS[command][1], monkeypatch, tmp_path)
    parameters = inspect.signature(DEFAULTS.get(command, function)).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    shared = found.keys() & defaults.keys() - {"config"}
    assert {name: found[name] for name in shared} == {name: defaults[name] for name in shared}


SWITCHES = [
    (command, switch)
    for command, (_, _, flags, _) in CALLS.items()
    for switch in re.findall(r"--\w+(?= --|$)", flags)
]


@pytest.mark.parametrize("command, switch", SWITCHES)
def test_a_switch_sets_its_option_alone(command, switch, monkeypatch, tmp_path):
    required = CALLS[command][1]
    _, without = call(command, required, monkeypatch, tmp_path)
    _, found = call(command, f"{required} {switch}", monkeypatch, tmp_path)
    changed = {name: value for name, value in found.items() if without.get(name) != value}
    changed.pop("config", None)  # read anew
    assert changed == {switch[2:].replace("aug_pred", "aug_eval"): True}


def test_serve_passes_model_address_and_limit(monkeypatch):
    for package in ("flask", "waitress"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    from paddleseg_segformer.deploy import server

    found, serve = [], command_module("serve")
    monkeypatch.setattr(serve, "Predictor", lambda *given, **named: (given, named))
    monkeypatch.setattr(server, "serve", lambda *given: found.append(given))
    for flags in ("", "--host ::1 --port 9 --max_megapixels 2.5 --backend paddle --aug_pred"):
        monkeypatch.setattr(sys, "argv", ["segformer", *f"{MODEL} {flags}".split()])
        serve.main()
    options = {"config": None, "device": None}
    assert found == [
        ((("a",), {**options, "backend": None}), "127.0.0.1", 8000, server.Limits(megapixels=25)),
        (
            (("a",), {**options, "backend": "paddle", "aug_eval": True}),
            *("::1", 9, server.Limits(megapixels=2.5)),
        ),
    ]


def exit_of(function, capsys):
    """Exit code and error output of ``common.run``."""
    with pytest.raises(SystemExit) as end:
        common.run(function)
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    "error, code, text",
    [
        (InputError("a\nb.jpg: is broken."), 2, "error: a\\nb.jpg: is broken.\n"),
        (RunError("the disk is full."), 1, "error: the disk is full.\n"),
        (MemoryError("out of memory"), 1, "error: out of memory\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_are_one_line_and_an_exit_code(error, code, text, capsys):
    def fail():
        raise error

    assert exit_of(fail, capsys) == (code, text)


def test_an_error_of_the_program_has_a_traceback():
    with pytest.raises(ZeroDivisionError):
        common.run(lambda: 1 // 0)


@pytest.mark.parametrize("command, flag", [("train", "--repeats"), ("predict", "--custom_color")])
@pytest.mark.parametrize("form", [["{}=2"], ["{}", "2"]])
def test_flags_of_paddleseg_alone_come_with_advice(command, flag, form, monkeypatch):
    arguments = shlex.split(CALLS[command][1]) + [word.format(flag) for word in form]
    monkeypatch.setattr(sys, "argv", ["segformer", *arguments])
    advice = f"; {flag} is a PaddleSeg-only flag: {common.PADDLESEG_ONLY_FLAGS[flag]}."
    with pytest.raises(InputError, match=re.escape(advice) + "$"):
        command_module(command).main()


# The flags of PaddleSeg's tools, releases 2.8.0 to 2.9.1 and the development branch: those that are
# the same here, and those that come with advice.
TEST_TIME = "--scales --flip_horizontal --flip_vertical --is_slide --crop_size --stride"
PADDLESEG_FLAGS = {
    "train": (
        "--config --device --save_dir --num_workers --do_eval --use_vdl --use_ema --resume_model "
        "--iters --batch_size --learning_rate --save_interval --log_iters --keep_checkpoint_max "
        "--early_stop_intervals --seed --precision --amp_level --opts",
        "--profiler_options --data_format --repeats --use_multilabel --to_static_training "
        "--output_op --input_shape --for_fd",
    ),
    "val": (
        f"--config --model_path --num_workers --device --aug_eval {TEST_TIME} --opts",
        "--data_format --auc_roc --use_multilabel",
    ),
    "predict": (
        f"--config --model_path --image_path --save_dir --device --aug_pred {TEST_TIME}",
        "--device_id --custom_color --use_multilabel",
    ),
    "export": ("--config --model_path --save_dir --input_shape --output_op", "--for_fd"),
}


@pytest.mark.parametrize("command", PADDLESEG_FLAGS)
def test_every_flag_of_paddleseg_works_or_comes_with_advice(command, monkeypatch, capsys):
    same, others = map(str.split, PADDLESEG_FLAGS[command])
    text = help_of(main, monkeypatch, capsys, "segformer", command)
    assert set(same) <= set(re.findall(r"--\w+", text))
    for flag in others:
        arguments = [*shlex.split(CALLS[command][1]), flag, "1"]
        monkeypatch.setattr(sys, "argv", ["segformer", *arguments])
        with pytest.raises(InputError, match=f"; {flag} is a PaddleSeg-only flag: [a-z]"):
            command_module(command).main()


@pytest.mark.parametrize(
    "command, arguments, message",
    [
        ("train", "--config a --accumulate 0", "--grad_accum_steps/--accumulate: 0 is below 1"),
        ("train", "--config a --early_stop_intervals 0", "--early_stop_intervals: 0 is below 1"),
        ("train", "--config a --save_interval 0", "--save_interval: 0 is below 1"),
        ("train", "--config a --log_iters x", "--log_iters: 'x' is not a whole number"),
        ("predict", f"{MODEL} --image_path b --runtime c", "--backend/--runtime: invalid choice"),
        ("val", f"--config a {MODEL} --num_workers -1", "--num_workers: -1 is below 0"),
        ("predict", MODEL, "required: --image_path; see --help"),
        ("analyse", "", "analyse: is not a command; use val with --report DIR"),
        ("''", "", "'': is not a command; use one of train, val, predict"),
        ("train", "--config a --save_dir ''", "argument --save_dir: is empty; see --help"),
        ("train", "--config a --opts b=1 ''", "argument --opts: is empty; see --help"),
        ("tain", "", "tain: is not a command; use one of train, val, predict"),
    ],
)
def test_invalid_arguments(command, arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["segformer", *shlex.split(f"{command} {arguments}")])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.integration
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("flush", [True, False])
def test_a_full_standard_output_is_a_failure(flush, unbuffered):
    """Of a print, and at the end, when what was printed before is written."""
    script = "from paddleseg_segformer.cli import common; common.run(lambda: print(1, flush=FLUSH))"
    script = script.replace("FLUSH", str(flush))
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    options = {"stderr": subprocess.PIPE, "text": True, "cwd": ROOT, "env": environment}
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", script], stdout=full, **options)
    assert done.returncode == 1
    assert done.stderr == "error: Standard output cannot be written (No space left on device).\n"


def test_a_file_that_the_system_refuses_is_one_sentence(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="1"):
        common.run(Path("a" * 300).read_bytes)
    assert capsys.readouterr().err == f"error: {'a' * 300}: File name too long.\n"


def test_an_error_of_the_program_keeps_its_traceback():
    def fail():
        raise OSError("a bug")

    with pytest.raises(OSError, match="a bug"):
        common.run(fail)

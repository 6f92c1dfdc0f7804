"""Check a machine before training on it: operators, training steps, speed; one table."""

import shutil
import tempfile
import time
from pathlib import Path

import paddle

from .. import device
from ..doctor import FAIL, PASS, SKIP, Context, all_checks, run_checks
from ..engine.evaluator import write_figures
from ..errors import InputError, RunError
from ..fs import check_file_writable
from ..log import setup_logging
from . import common

NAME_WIDTH, MEASURED_WIDTH = 36, 52


def parse_args():
    parser = common.plain_parser(__doc__, "--json doctor.json")
    parser.add_argument("--device", help="gpu, gpu:N, cpu, … (default: gpu if available, else cpu)")
    parser.add_argument(
        "--json", dest="json_path", metavar="FILE", help="write all figures to a JSON file"
    )
    return parser.parse_args()


def main():
    args = parse_args()
    setup_logging()
    if args.json_path is not None:
        check_file_writable(args.json_path, "--json")
    # A GPU that Paddle cannot use is an error, unless the CPU is asked for.
    requested = args.device or ("gpu" if shutil.which("nvidia-smi") else None)
    try:
        selected = device.set_device(requested)
    except ValueError as error:
        raise InputError(str(error)) from error
    gpus = paddle.device.cuda.device_count() if selected.startswith("gpu") else 0
    rows, start = [], time.monotonic()
    print(_line("check", "", "measured", "bound"), flush=True)
    with tempfile.TemporaryDirectory(prefix="segformer_doctor_") as folder:
        context = Context(selected, gpus, Path(folder))
        for row in run_checks(all_checks(gpus > 0), context):
            rows.append(row)
            print(_line(row.name, row.status, row.measured, row.bound), flush=True)
    counts = {status: sum(row.status == status for row in rows) for status in (PASS, FAIL, SKIP)}
    print(", ".join(f"{count} {status}" for status, count in counts.items()), end="")
    print(f" in {time.monotonic() - start:.0f} s on {selected}")
    if args.json_path is not None:
        content = {"device": selected, "counts": counts, "rows": [row._asdict() for row in rows]}
        write_figures(Path(args.json_path), content)
    if counts[FAIL]:
        hint = f"{args.json_path} has" if args.json_path else "--json FILE writes"
        raise RunError(f"{counts[FAIL]} of {len(rows)} checks failed; {hint} their output.")


def _line(name, status, measured, bound):
    return f"{name:{NAME_WIDTH}} {status:4}  {measured:{MEASURED_WIDTH}}  {bound}".rstrip()

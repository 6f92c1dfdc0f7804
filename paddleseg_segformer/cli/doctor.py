"""Check a machine before training on it: operators, training steps, speed; one table."""

import json
import tempfile
from pathlib import Path

from .. import device
from ..errors import InputError, RunError
from ..fs import atomic_write, check_file_writable
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
    try:
        selected = device.set_device(args.device)
    except ValueError as error:
        raise InputError(str(error)) from error
    from ..doctor import FAIL, SKIP, Context, all_checks, run_checks

    gpus = 0
    if selected.startswith("gpu"):
        import paddle

        gpus = paddle.device.cuda.device_count()
    rows = []
    print(_line("check", "", "measured", "bound"), flush=True)
    with tempfile.TemporaryDirectory(prefix="segformer_doctor_") as folder:
        context = Context(selected, gpus, Path(folder))
        for row in run_checks(all_checks(gpus > 0), context):
            rows.append(row)
            print(_line(row.name, row.status, row.measured, row.bound), flush=True)
    counts = {status: sum(row.status == status for row in rows) for status in ("PASS", FAIL, SKIP)}
    seconds = sum(row.seconds for row in rows)
    print(", ".join(f"{count} {status}" for status, count in counts.items()), end="")
    print(f" in {seconds:.0f} s on {selected}")
    if args.json_path is not None:
        content = {"device": selected, "counts": counts, "rows": [row._asdict() for row in rows]}
        atomic_write(Path(args.json_path).resolve(), (json.dumps(content, indent=1) + "\n").encode())
    if counts[FAIL]:
        raise RunError(f"{counts[FAIL]} of {len(rows)} checks failed.")


def _line(name, status, measured, bound):
    return f"{name:{NAME_WIDTH}} {status:4}  {measured:{MEASURED_WIDTH}}  {bound}".rstrip()

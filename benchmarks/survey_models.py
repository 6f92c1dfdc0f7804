"""Try every model of PaddleSeg: build it, train it for three iterations, evaluate it.

Each with a backbone of its own, as in benchmarks/paddleseg_models.yaml, and with MiT-B0, as in
configs/paddleseg/. Prints the table of docs/paddleseg.md.
"""

import multiprocessing
import os
import tempfile
import textwrap
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import yaml

from paddleseg_segformer.cli import common
from paddleseg_segformer.config import build, load_config
from paddleseg_segformer.device import tune_cpu
from paddleseg_segformer.engine import train, validate

HERE = Path(__file__).parent
GUESTS = HERE.parent / "configs" / "paddleseg"
TRANSFORMS = [
    {"type": "Resize", "target_size": [128, 128]},  # enough for all of them, and quick
    {"type": "Normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
]
LIMIT = 300  # seconds a step
STEPS = ("builds", "trains", "evaluates")


def main():
    parser = common.plain_parser(__doc__, "--dataset_root data/ADEChallengeData2016")
    parser.add_argument(
        "--dataset_root", default="data/scenes", help="images in ADE20K's layout to try with"
    )
    parser.add_argument("--models", nargs="+", metavar="NAME", help="some models; else all")
    options = parser.parse_args()
    tune_cpu()
    stock = read_yaml(HERE / "paddleseg_models.yaml")
    guests = {read_yaml(path)["model"]["type"]: path for path in GUESTS.glob("*.yaml")}
    print("| Model | Backbone | | MiT-B0 |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models or sorted(stock, key=str.lower):
            path = Path(folder, f"{name}.yaml")
            path.write_text(yaml.safe_dump(stock_config(name, stock[name])))
            backbone = stock[name].get("model", {}).get("backbone", {}).get("type", "its own")
            cells = [name, backbone, try_out(path, options.dataset_root)]
            if name in guests:
                cells.append(try_out(guests[name], options.dataset_root))
            else:
                cells.append(stock[name].get("not_mit", "has no backbone"))
            print(f"| {' | '.join(cells)} |", flush=True)


def read_yaml(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def stock_config(name, entry):
    """A configuration of a model as PaddleSeg publishes it, on ADE20K."""
    model = {"type": name, "num_classes": 150, **entry.get("model", {})}
    loss = entry.get("loss")
    if loss is None:
        kind = "OhemCrossEntropyLoss" if "ohem" in entry else "CrossEntropyLoss"
        weights = entry.get("ohem") or entry.get("coef", [1])
        loss = {"types": [{"type": kind} for _ in weights], "coef": weights}
    data = {"type": "ADE20K", "transforms": TRANSFORMS}
    return {
        "train_dataset": {**data, "mode": "train", "edge": entry.get("edge", False)},
        "val_dataset": {**data, "mode": "val"},
        "model": model,
        "optimizer": {"type": "SGD", "momentum": 0.9, "weight_decay": 4.0e-5},
        "lr_scheduler": {"type": "PolynomialDecay", "learning_rate": 1e-3, "power": 0.9},
        "loss": loss,
    }


def try_out(path, dataset_root):
    """How far a configuration comes, and what stops it, for a cell of the table."""
    opts = [f"{part}_dataset.dataset_root={dataset_root}" for part in ("train", "val")]
    opts += [f"{part}_dataset.transforms={TRANSFORMS}" for part in ("train", "val")]
    if path.parent == GUESTS:
        opts.append("model.backbone.pretrained=null")
    with tempfile.TemporaryDirectory() as save_dir:
        for step in STEPS:
            # In a process of its own: some models cannot be built twice, or crash.
            receiver, sender = multiprocessing.Pipe(duplex=False)
            fork = multiprocessing.get_context("fork")
            process = fork.Process(target=run_step, args=(step, path, opts, save_dir, sender))
            process.start()
            sender.close()
            try:
                error = receiver.recv() if receiver.poll(LIMIT) else f"takes over {LIMIT} s"
            except EOFError:
                error = "the process crashes"
            process.kill()
            process.join()
            if error is not None:
                return f"{step}: no, {error}"
    return "yes"


def run_step(step, path, opts, save_dir, sender):
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            config = load_config(path, opts, batch_size=2, iters=3)
            if step == "builds":
                build(config, "model")
            elif step == "trains":
                train(config, save_dir=save_dir)
            else:
                validate(config, f"{save_dir}/iter_3/model.pdparams")
            sender.send(None)
        except Exception as error:
            message = " ".join(str(error).split())
            sender.send(f"{type(error).__name__}: {textwrap.shorten(message, 120)}")


if __name__ == "__main__":
    common.run(main)

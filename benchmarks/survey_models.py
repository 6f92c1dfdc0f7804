"""Build, train (three iterations) and evaluate every model of the installed PaddleSeg.

Each model is tried with the backbone in benchmarks/paddleseg_models.yaml, and with MiT-B0 as in
configs/paddleseg/. Prints the table of docs/paddleseg.md.
"""

import multiprocessing
import os
import tempfile
import textwrap
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import yaml
from paddleseg.cvlibs import manager

from paddleseg_segformer.cli import common
from paddleseg_segformer.config import build, load_config
from paddleseg_segformer.device import tune_cpu
from paddleseg_segformer.engine import train, validate

HERE = Path(__file__).parent
MIT_CONFIGS = HERE.parent / "configs" / "paddleseg"
TRANSFORMS = [
    {"type": "Resize", "target_size": [128, 128]},  # large enough for every model
    {"type": "Normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
]
TIMEOUT = 300  # seconds per step
STEPS = ("builds", "trains", "evaluates")


def main():
    parser = common.plain_parser(__doc__, "--dataset_root data/ADEChallengeData2016")
    parser.add_argument(
        "--dataset_root", default="data/scenes", metavar="DIR", help="dataset in ADE20K's layout"
    )
    parser.add_argument("--models", nargs="+", metavar="NAME", help="models to try (default: all)")
    options = parser.parse_args()
    tune_cpu()
    entries = read_yaml(HERE / "paddleseg_models.yaml")
    mit_configs = {read_yaml(path)["model"]["type"]: path for path in MIT_CONFIGS.glob("*.yaml")}
    print("| Model | Backbone | | MiT-B0 |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        known = entries.keys() & manager.MODELS.components_dict.keys()
        for name in options.models or sorted(known, key=str.lower):
            entry, path = entries[name], Path(folder, f"{name}.yaml")
            path.write_text(yaml.safe_dump(make_config(name, entry)))
            backbone = entry.get("model", {}).get("backbone", {}).get("type", "its own")
            cells = [name, backbone, try_config(path, options.dataset_root)]
            if name in mit_configs:
                cells.append(try_config(mit_configs[name], options.dataset_root))
            else:
                cells.append(entry.get("not_mit", "has no backbone"))
            print(f"| {' | '.join(cells)} |", flush=True)


def read_yaml(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def make_config(name, entry):
    """The config of a model on ADE20K, from its entry in paddleseg_models.yaml."""
    model = {"type": name, "num_classes": 150, **entry.get("model", {})}
    loss = entry.get("loss")
    if loss is None:
        loss_type = "OhemCrossEntropyLoss" if "ohem" in entry else "CrossEntropyLoss"
        coef = entry.get("ohem") or entry.get("coef", [1])
        loss = {"types": [{"type": loss_type} for _ in coef], "coef": coef}
    data = {"type": "ADE20K", "transforms": TRANSFORMS}
    return {
        "train_dataset": {**data, "mode": "train", "edge": entry.get("edge", False)},
        "val_dataset": {**data, "mode": "val"},
        "model": model,
        "optimizer": {"type": "SGD", "momentum": 0.9, "weight_decay": 4.0e-5},
        "lr_scheduler": {"type": "PolynomialDecay", "learning_rate": 1e-3, "power": 0.9},
        "loss": loss,
    }


def try_config(path, dataset_root):
    """A table cell: "yes", or the first step that fails and its error."""
    opts = [f"{split}_dataset.dataset_root={dataset_root}" for split in ("train", "val")]
    opts += [f"{split}_dataset.transforms={TRANSFORMS}" for split in ("train", "val")]
    if path.parent == MIT_CONFIGS:
        opts.append("model.backbone.pretrained=null")
    with tempfile.TemporaryDirectory() as save_dir:
        for step in STEPS:
            # In a separate process: some models crash or cannot be built twice.
            receiver, sender = multiprocessing.Pipe(duplex=False)
            fork = multiprocessing.get_context("fork")
            process = fork.Process(target=run_step, args=(step, path, opts, save_dir, sender))
            process.start()
            sender.close()
            try:
                error = receiver.recv() if receiver.poll(TIMEOUT) else f"takes over {TIMEOUT} s"
            except EOFError:
                error = "the process crashes"
            process.kill()
            process.join()
            if error is not None:
                return f"{step}: no, {error}"
    return "yes"


def run_step(step, path, opts, save_dir, sender):
    """Run one step in a forked process, and send None or the error message."""
    with open(os.devnull, "w") as devnull, redirect_stdout(devnull), redirect_stderr(devnull):
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

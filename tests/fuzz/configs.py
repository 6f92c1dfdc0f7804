"""Configs with random errors are accepted or give an InputError."""

import copy
import os
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["paddleseg_segformer"], enable_loader_override=False):
    from paddleseg_segformer.config import load_config
    from paddleseg_segformer.config_check import check_config
    from paddleseg_segformer.errors import InputError

import yaml
from fuzzing import check_error, fuzz

PATH = os.path.join(tempfile.mkdtemp(), "config.yml")
CONFIGS = Path(__file__).parents[2] / "configs"
TREES = [load_config(path).dic for path in sorted(CONFIGS.glob("segformer_*b0*.yaml"))]
VALUES = [None, True, 0, 1, -1, 2.5, float("nan"), float("inf"), 10**400, "", "x", "a\nb", "6e-5"]
VALUES += [[], [1], ["x"], [None], [[]], {}, {"type": "Dataset"}, {"type": None}, {"type": []}]
VALUES += [{1: 2}, {None: 1}, {"type": "SegFormer", "backbone": {"type": "x"}}, (1, 2), b"x"]
VALUES += ["SegFormer", "Normalize", "CrossEntropyLoss", "AdamW", "PolynomialDecay", "ResNet50_vd"]


def positions(tree):
    """All (dictionary or list, key or index) pairs in a tree."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield tree, key
        if isinstance(value, (dict, list)):
            yield from positions(value)


def one_input(data):
    choose = atheris.FuzzedDataProvider(data)
    tree = copy.deepcopy(choose.PickValueInList(TREES))
    for _ in range(choose.ConsumeIntInRange(1, 4)):
        candidates = list(positions(tree))
        if not candidates:
            break
        parent, key = choose.PickValueInList(candidates)
        value, change = parent[key], choose.ConsumeIntInRange(0, 4)
        if change == 0:
            del parent[key]
        elif change == 1 and isinstance(parent, dict):
            del parent[key]
            parent[choose.PickValueInList([f"{key}x", key.__class__(), 1, None, "type"])] = value
        elif change == 2:
            other, at = choose.PickValueInList(candidates)
            parent[key] = copy.deepcopy(other[at])
        elif change == 3:
            parent[key] = choose.ConsumeUnicodeNoSurrogates(8)
        else:
            parent[key] = copy.deepcopy(choose.PickValueInList(VALUES))
    try:
        check_config(copy.deepcopy(tree))
    except InputError as error:
        check_error(error)
    if choose.ConsumeIntInRange(0, 3):
        return
    with open(PATH, "w", encoding="utf-8") as file:
        yaml.dump(tree, file)
    try:
        load_config(PATH, [choose.ConsumeUnicodeNoSurrogates(20)] if choose.ConsumeBool() else ())
    except InputError as error:
        check_error(error)


if __name__ == "__main__":
    fuzz(one_input, [bytes([i] * 40) for i in range(0, 256, 16)])

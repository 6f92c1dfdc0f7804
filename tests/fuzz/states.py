"""Damaged state dicts of each format are converted and loaded, or give an InputError."""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["paddleseg_segformer"], enable_loader_override=False):
    from paddleseg_segformer import MixVisionTransformer, SegFormer
    from paddleseg_segformer.errors import InputError
    from paddleseg_segformer.weights import load_weights, read_weights
    from paddleseg_segformer.weights.architecture import missing_layers

import numpy as np
from fuzzing import check_error, fuzz

sys.path.insert(0, str(Path(__file__).parents[1]))
from checkpoint_fixtures import FORMATS


def model(projection):
    backbone = MixVisionTransformer(
        embed_dims=[4, 4, 4, 4], num_heads=[1, 1, 1, 1], depths=[1, 1, 1, 1], sr_ratios=[8, 4, 2, 1]
    )
    return SegFormer(2, backbone, 4, projection)


MODELS = {projection: model(projection) for projection in ("linear", "conv_bn_relu")}
STATES = [
    write({name: tensor.numpy() for name, tensor in MODELS[projection].state_dict().items()}, 2)
    for write, projection in FORMATS.values()
]
PIECES = ["backbone.", ".weight", ".bias", "decode_head.", "block1.0.", ".attn.", "\n", "9" * 30]


def one_input(data):
    choose = atheris.FuzzedDataProvider(data)
    state = dict(choose.PickValueInList(STATES))
    for _ in range(choose.ConsumeIntInRange(1, 4)):
        name = choose.PickValueInList(list(state))
        value, change = state.pop(name), choose.ConsumeIntInRange(0, 5)
        if change == 1:
            dtype = choose.PickValueInList(["float16", "int8", "uint16", "S2", "bool", "complex64"])
            state[name] = value.astype(dtype)
        elif change == 2:
            shape = [choose.ConsumeIntInRange(0, 5) for _ in range(choose.ConsumeIntInRange(0, 4))]
            state[name] = np.ones(shape, "float32")
        elif change == 3:
            state[name] = np.full_like(value, np.nan, dtype="float32")
        elif change == 4:
            old, new = choose.PickValueInList(PIECES), choose.PickValueInList(PIECES)
            state[name.replace(old, new)] = value
        elif change == 5:
            state[name + choose.PickValueInList(PIECES)] = value
        if not state:
            return
    try:
        checkpoint = read_weights(state)
        if checkpoint.architecture is not None:
            missing_layers(checkpoint.architecture, checkpoint.state)
            str(checkpoint.architecture)
        target = MODELS[choose.PickValueInList(list(MODELS))]
        load_weights(target, state, strict=choose.ConsumeBool())
    except InputError as error:
        check_error(error)


if __name__ == "__main__":
    fuzz(one_input, [bytes([i]) * 40 for i in range(0, 256, 16)])

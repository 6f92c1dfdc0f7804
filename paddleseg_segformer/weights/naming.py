"""What the source formats share on their way to our names and Paddle's layout."""

import re

import numpy as np

BACKBONE = "backbone."

# What a backbone trained on ImageNet has at its end, in the names of the paper's code.
IMAGENET_CLASSIFIER = r"^head\.(weight|bias)$"

# BatchNorm's statistics have PyTorch's names or Paddle's.
BATCH_NORM = (
    (r"\.running_mean$", "._mean"),
    (r"\.running_var$", "._variance"),
)


def key_value_shape(state):
    """Of the first key-value projection in the names of the paper's code; zeros without one."""
    name = "block1.0.attn.kv.weight"
    key_value = state.get(name, state.get(BACKBONE + name))
    return (0, 0) if key_value is None else key_value.shape


def of_stages(*rules):
    """Rules for each of the four stages: {} is its number, from 0 in their name, from 1 in ours."""
    return tuple((theirs.format(i), ours.format(i + 1)) for i in range(4) for theirs, ours in rules)


def rename(state, rules, unused=()):
    """Rename tensors.

    Args:
        state: Arrays by name.
        rules: Pairs of a regular expression and its replacement, all applied in this order.
        unused: Regular expressions of the names that the model has no use for.

    Returns:
        A new dictionary, without the unused tensors.
    """
    unused = (r"\.num_batches_tracked$", *unused)
    renamed = {}
    for name, value in state.items():
        if any(re.search(pattern, name) for pattern in unused):
            continue
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def transpose_linears(state):
    """Turn the weights of linear layers from PyTorch's [out, in] into Paddle's [in, out]."""
    return {name: value.T if value.ndim == 2 else value for name, value in state.items()}


def conv1x1_to_linear(state):
    """Turn the 1x1 convolutions of a Mix-FFN, [out, in, 1, 1], into linear weights [in, out]."""
    return {
        name: value[:, :, 0, 0].T if re.search(r"\.mlp\.fc[12]\.weight$", name) else value
        for name, value in state.items()
    }


def join_key_value(state, key, value, joined):
    """Concatenate PyTorch's key and value projections along their outputs into our ``kv``.

    Args:
        state: Arrays by name, changed in place.
        key, value, joined: Parts of names, such as ``.attn.k.``, that differ in nothing else.
    """
    for name in [name for name in state if key in name]:
        parts = state.pop(name), state.pop(name.replace(key, value))
        state[name.replace(key, joined)] = np.concatenate(parts)

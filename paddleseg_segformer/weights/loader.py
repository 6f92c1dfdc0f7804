"""Loading weights into a model."""

import os
from dataclasses import dataclass
from urllib.parse import urlparse

import numpy as np

from ..errors import InputError
from .pickles import read_pdparams

CLASSIFIER = ("linear_pred.weight", "linear_pred.bias")
BACKBONE = "backbone."


@dataclass(frozen=True)
class Loaded:
    """What ``load_weights`` did: the model's tensors with and without new values, by name, and the
    source's tensors that it had no use for."""

    loaded: list
    missing: list
    unexpected: list


def load_weights(model, source):
    """Load weights into a SegFormer or a Mix Transformer.

    Args:
        model: The layer to load into.
        source: Path of a ``.pdparams`` file, or a dictionary of arrays. A backbone's weights load
            into a whole model too, and a whole model's into a backbone.

    Returns:
        ``Loaded``. A classifier for another number of classes is among its ``missing``.

    Raises:
        InputError: The file is not a checkpoint, or does not fit the model.
    """
    name = "the given weights" if isinstance(source, dict) else os.fspath(source)
    state = source if isinstance(source, dict) else read_pdparams(name)
    target = model.state_dict()
    source_names = _source_names(target, state)
    fitting = {
        key: np.asarray(state[source_names[key]])
        for key in target
        if source_names[key] in state
        and list(np.shape(state[source_names[key]])) == target[key].shape
    }
    missing = [key for key in target if key not in fitting]
    backbone_alone = not any(source_names[key] in state for key in target if not _in_backbone(key))
    optional = CLASSIFIER if not backbone_alone else [k for k in target if not _in_backbone(k)]
    misfits = [key for key in missing if key not in optional]
    if misfits or not fitting:
        raise InputError(
            f"{name}: does not fit the model: {len(misfits)} of its {len(target)} tensors are "
            f"missing or of another shape ({', '.join(misfits[:3])}, …); use a checkpoint of the "
            "same architecture."
        )
    for key, value in fitting.items():
        target[key].set_value(value)
    used = {source_names[key] for key in fitting}
    return Loaded(list(fitting), missing, [key for key in state if key not in used])


def _in_backbone(key):
    return key.startswith(BACKBONE)


def _source_names(target, state):
    """The model's names as the source has them: whole models prefix those of the backbone."""
    if any(map(_in_backbone, target)) == any(map(_in_backbone, state)):
        return {key: key for key in target}
    if any(map(_in_backbone, state)):
        return {key: BACKBONE + key for key in target}
    return {key: key[len(BACKBONE) :] if _in_backbone(key) else key for key in target}


def load_pretrained(model, source):
    """What ``pretrained`` in a config means: ``load_weights`` from a path or a URL, or nothing."""
    if source is None:
        return
    if urlparse(str(source)).scheme in ("http", "https"):
        source = _download(source)
    load_weights(model, source)


def _download(url):
    # PaddleSeg's own cache, so that a file fetched by either is fetched once.
    from paddleseg.utils import download_pretrained_model

    try:
        return download_pretrained_model(url)
    except Exception as error:
        raise InputError(
            f"{url}: could not be downloaded ({error}); fetch it by other means and set "
            "model.backbone.pretrained to the file, or to null to start from scratch."
        ) from error

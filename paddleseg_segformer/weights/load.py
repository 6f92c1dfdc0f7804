"""Recognizing a checkpoint, and loading it into a model."""

from __future__ import annotations

import logging
import os
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Union

import numpy as np
import paddle
from paddle import nn

from ..errors import InputError
from ..fs import StrPath
from . import huggingface, mmseg, nvlabs, paddleseg, paddlevit
from .architecture import Architecture, infer_architecture
from .checkpoint_io import extract_tensors, read_checkpoint
from .download import download, is_url
from .naming import BACKBONE
from .unpickle import bfloat16_to_float32

FORMATS = (paddleseg, nvlabs, huggingface, mmseg, paddlevit)
CLASSIFIER = ("linear_pred.weight", "linear_pred.bias")

# What ``load_weights`` takes.
Source = Union[StrPath, Mapping[str, np.ndarray]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in our names and Paddle's layout.

    Attributes:
        source: Where it came from, for messages.
        format: Name of the format it was in.
        norm_epsilon: LayerNorm's epsilon in the implementation that it comes from; None is the
            paper's mix.
        state: float arrays by name; a backbone's names have no prefix.
        architecture: ``Architecture``, or None where parts of an encoder are missing.
    """

    source: str
    format: str
    norm_epsilon: float | None
    state: dict[str, np.ndarray]
    architecture: Architecture | None


@dataclass(frozen=True)
class LoadResult:
    """What ``load_weights`` did.

    Attributes:
        loaded: Names of the model's tensors that have new values.
        missing: Names of the model's other tensors.
        unexpected: Names, ours, of the source's tensors that the model has no place for.
        checkpoint: The ``Checkpoint``.
    """

    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    checkpoint: Checkpoint


def read_weights(source: Source, names: Container[str] = ()) -> Checkpoint:
    """Read a checkpoint in any of the formats, and turn it into our names.

    Args:
        source: As in ``load_weights``.
        names: Of the model's tensors; a checkpoint in no known format that shares them is that of
            another PaddleSeg model, and is left as it is.

    Returns:
        ``Checkpoint``.

    Raises:
        InputError: It cannot be read, or is no SegFormer.
    """
    if isinstance(source, Mapping):
        name = "the given arrays"
        state = extract_tensors(source, name)
    elif not isinstance(source, (str, os.PathLike)):
        raise InputError(
            f"The weights are given as {type(source).__name__}; give a path, a URL or a dictionary "
            "of arrays."
        )
    else:
        name = os.fspath(source)
        state = read_checkpoint(download(name) if is_url(name) else name)
    state = {key: _checked(name, key, value) for key, value in state.items()}
    for source_format in FORMATS:
        try:
            if source_format.matches(state):
                return _converted(name, source_format, state)
        except (KeyError, ValueError, IndexError) as error:
            raise InputError(
                f"{name}: is a damaged {source_format.NAME} checkpoint ({error}); fetch it again."
            ) from error
    if any(key in names for key in state):
        return Checkpoint(name, paddleseg.NAME, paddleseg.EPSILON, state, None)
    raise InputError(
        f"{name}: is no SegFormer in a known format ({', '.join(f.NAME for f in FORMATS)}); its "
        f"first tensors are {_first(list(state))}."
    )


def _checked(source, name, value):
    """A tensor's numbers: finite, in native byte order, not in Paddle's guise of bfloat16."""
    if value.dtype == np.uint16:
        value = bfloat16_to_float32(value)
    if value.dtype.kind not in "biuf":
        raise InputError(f"{source}: {name} holds no numbers.")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise InputError(f"{source}: {name} has NaN or infinite values; use another checkpoint.")
    return value.astype(value.dtype.newbyteorder("="), copy=False)


def _converted(name, source_format, state):
    state = source_format.convert(state)
    if all(key.startswith(BACKBONE) for key in state):
        state = {key[len(BACKBONE) :]: value for key, value in state.items()}
    architecture = infer_architecture(state)
    return Checkpoint(name, source_format.NAME, source_format.EPSILON, state, architecture)


def load_weights(model: nn.Layer, source: Source, strict: bool = True) -> LoadResult:
    """Load weights into a SegFormer, a Mix Transformer, or another PaddleSeg model.

    Args:
        model: The layer to load into.
        source: Path of a file (``.pdparams``, a ``.tar.gz`` of one, ``.safetensors``, ``.pth``,
            ``.bin``) or of a Hugging Face model folder, a URL of such a file, or a dictionary of
            arrays or of PyTorch's or Paddle's tensors; of PaddleSeg, NVlabs, Hugging Face,
            mmsegmentation or PaddleViT. A backbone loads into a whole model too, and a whole model
            into a backbone.
        strict: Whether tensors that are missing or unexpected are an error. A whole model's head
            may always be missing from a backbone, and a classifier for another number of classes.

    Returns:
        ``LoadResult``.

    Raises:
        InputError: The source cannot be read, or does not fit the model. The model is unchanged.
    """
    target = model.state_dict()
    checkpoint = read_weights(source, target)
    state = _with_names_of(target, checkpoint.state)
    fitting = {
        name: state[name]
        for name, tensor in target.items()
        if name in state and list(state[name].shape) == tensor.shape
    }
    missing = [name for name in target if name not in fitting]
    unexpected = [name for name in state if name not in target]
    has_head = any(name in state for name in target if not name.startswith(BACKBONE))
    other_classes = has_head and all(name in state and name in missing for name in CLASSIFIER)
    if has_head:
        may_miss = CLASSIFIER if other_classes else ()
    else:
        may_miss = [name for name in missing if not name.startswith(BACKBONE)]
    misfits = [name for name in missing if name not in may_miss]
    if not fitting or (strict and (misfits or unexpected)):
        raise InputError(_misfit(checkpoint, infer_architecture(target), misfits, unexpected))
    for name, value in fitting.items():
        with np.errstate(over="ignore"):  # which is told below
            fitting[name] = tensor = paddle.to_tensor(value, dtype=target[name].dtype)
        if paddle.is_floating_point(tensor) and not paddle.isfinite(tensor).all():
            dtype = str(target[name].dtype).rpartition(".")[2]
            raise InputError(
                f"{checkpoint.source}: {name} has numbers beyond the range of the model's {dtype}; "
                "use another checkpoint, or a model of a wider type."
            )
    for name, value in fitting.items():
        target[name].set_value(value)
    _warn_of_epsilon(model, checkpoint)
    if other_classes:
        logger.warning(
            "%s has another number of classes than the model: the classifier keeps its own weights",
            checkpoint.source,
        )
    return LoadResult(list(fitting), missing, unexpected, checkpoint)


def _warn_of_epsilon(model, checkpoint):
    epsilons = {
        layer._epsilon for layer in model.sublayers() if type(layer).__name__ == "LayerNorm"
    }
    wanted = checkpoint.norm_epsilon
    if wanted is not None and epsilons - {wanted}:
        logger.warning(
            "%s comes from %s, where every LayerNorm's epsilon is %g: set model.backbone."
            "norm_epsilon=%g for the same function",
            checkpoint.source,
            checkpoint.format,
            wanted,
            wanted,
        )


def load_pretrained(model: nn.Layer, source: Source | None) -> None:
    """What ``pretrained`` means in a config: ``load_weights``, told in the log, or None."""
    if source is None:
        return
    loaded = load_weights(model, source)
    logger.info(
        "Loaded %d of %d tensors from %s (%s, %s)",
        len(loaded.loaded),
        len(loaded.loaded) + len(loaded.missing),
        loaded.checkpoint.source,
        loaded.checkpoint.format,
        loaded.checkpoint.architecture,
    )


def _with_names_of(target, state):
    """Add or take away the prefix of the backbone, as the model has it."""
    whole_model = any(name.startswith(BACKBONE) for name in target)
    whole_state = any(name.startswith(BACKBONE) for name in state)
    if whole_model and not whole_state:
        return {BACKBONE + name: value for name, value in state.items()}
    if whole_state and not whole_model:
        return {
            name[len(BACKBONE) :]: value
            for name, value in state.items()
            if name.startswith(BACKBONE)
        }
    return state


def _misfit(checkpoint, wanted, misfits, unexpected):
    """One sentence on why a checkpoint does not fit, and what would."""
    found = checkpoint.architecture
    if found is not None and wanted is not None and not _compatible(found, wanted):
        return (
            f"{checkpoint.source}: is a {found}, and the model is a {wanted}; "
            f"{_arguments_for(found)}."
        )
    parts = []
    if misfits:
        parts.append(f"lacks, or has in another shape, {_first(misfits)}")
    if unexpected:
        parts.append(f"has what the model has no place for, {_first(unexpected)}")
    return f"{checkpoint.source}: {' and '.join(parts)}; use a checkpoint of the same model."


def _compatible(found, wanted):
    if (found.channels, found.depths) != (wanted.channels, wanted.depths):
        return False
    if found.width is None or wanted.width is None:
        return True
    return (found.width, found.stage_projection) == (wanted.width, wanted.stage_projection)


def _arguments_for(architecture):
    if architecture.variant is None:
        encoder = (
            f"set the backbone's embed_dims {list(architecture.channels)} and depths "
            f"{list(architecture.depths)}"
        )
    else:
        encoder = f"set the backbone to MixVisionTransformer_{architecture.variant}"
    if architecture.width is None:
        return encoder
    return (
        f"{encoder}, embedding_dim to {architecture.width} and stage_projection to "
        f"{architecture.stage_projection}"
    )


def _first(names, count=3):
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more

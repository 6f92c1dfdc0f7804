"""Load a checkpoint in any supported format into a model."""

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
from .architecture import Architecture, infer_architecture
from .checkpoint_io import extract_tensors, read_checkpoint
from .download import local_path
from .formats import BACKBONE, FORMATS, PADDLESEG
from .unpickle import bfloat16_to_float32

CLASSIFIER = ("linear_pred.weight", "linear_pred.bias")
FIRST_KERNELS = "patch_embed1.proj.weight"  # the only tensor that depends on the number of bands
BAND_RULES = ("rgb", "mean")

Source = Union[StrPath, Mapping[str, np.ndarray]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in PaddleSeg's names and Paddle's layout.

    Attributes:
        source: Path, URL, repository or description, for messages.
        format: Name of the original format.
        norm_epsilon: As of ``CheckpointFormat``.
        state: Arrays by name; the names of a backbone have no prefix.
        architecture: None if layers of the encoder are missing.
    """

    source: str
    format: str
    norm_epsilon: float | None
    state: dict[str, np.ndarray]
    architecture: Architecture | None


@dataclass(frozen=True)
class LoadResult:
    """The result of ``load_weights``.

    Attributes:
        loaded: Names of the model's tensors that were loaded.
        missing: Names of the model's other tensors.
        unexpected: Names, after conversion, of the checkpoint's tensors that the model lacks.
        checkpoint: The checkpoint.
    """

    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    checkpoint: Checkpoint


def read_weights(source: Source, names: Container[str] = ()) -> Checkpoint:
    """Read a checkpoint and convert it to PaddleSeg's format.

    Args:
        source: As for ``load_weights``.
        names: Names of the model's tensors. A checkpoint in no known format that shares some of
            them belongs to another PaddleSeg model and is not converted.

    Raises:
        InputError: The source cannot be read, or is no SegFormer checkpoint.
    """
    if isinstance(source, Mapping):
        name = "the given arrays"
        state = extract_tensors(source, name)
    elif not isinstance(source, (str, os.PathLike)):
        raise InputError(
            f"The weights are given as {type(source).__name__}; give a path, a URL, the name of a "
            "Hugging Face repository or a dictionary of arrays."
        )
    else:
        name = os.fspath(source)
        state = read_checkpoint(local_path(name))
    state = {key: _normalize_array(name, key, value) for key, value in state.items()}
    for source_format in FORMATS:
        try:
            if source_format.matches(state):
                return _convert(name, source_format, state)
        except (KeyError, ValueError, IndexError) as error:
            damaged = f"is a damaged {source_format.name} checkpoint ({error})"
            raise InputError(f"{name}: {damaged}; download it again.") from error
    if any(key in names for key in state):
        return Checkpoint(name, PADDLESEG.name, PADDLESEG.norm_epsilon, state, None)
    raise InputError(
        f"{name}: is no SegFormer in a known format ({', '.join(f.name for f in FORMATS)}); its "
        f"first tensors are {_first(list(state))}."
    )


def _normalize_array(source, name, value):
    """Convert to native byte order, and Paddle's bfloat16 (saved as uint16) to float32."""
    if value.dtype == np.uint16:
        value = bfloat16_to_float32(value)
    if value.dtype.kind not in "biuf":
        raise InputError(f"{source}: {name} is not numeric; use another checkpoint.")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise InputError(f"{source}: {name} has NaN or infinite values; use another checkpoint.")
    return value.astype(value.dtype.newbyteorder("="), copy=False)


def _convert(name, source_format, state):
    state = source_format.convert(state)
    if all(key.startswith(BACKBONE) for key in state):
        state = {key[len(BACKBONE) :]: value for key, value in state.items()}
    architecture = infer_architecture(state)
    return Checkpoint(name, source_format.name, source_format.norm_epsilon, state, architecture)


def load_weights(
    model: nn.Layer, source: Source, strict: bool = True, bands: str | None = None
) -> LoadResult:
    """Load weights into a SegFormer, a Mix Transformer, or another PaddleSeg model.

    A backbone loads into a whole model, and the backbone of a whole model into a backbone.

    Args:
        model: The layer to load into.
        source: Path of a file (``.pdparams``, a ``.tar.gz`` of one, ``.safetensors``, ``.pth``,
            ``.bin``) or of a Hugging Face model folder, URL of such a file, name of a Hugging Face
            repository, such as ``"nvidia/mit-b0"`` or ``"nvidia/mit-b0@main"``, or dictionary of
            arrays or of PyTorch or Paddle tensors, from PaddleSeg, NVlabs, Hugging Face,
            mmsegmentation or PaddleViT.
        strict: Whether missing or unexpected tensors are an error. The decode head may be missing
            from a backbone, and a classifier for another number of classes is not loaded.
        bands: How weights for images of 3 bands are adapted to a model for another number: a rule
            of ``adapt_bands``; None means not at all.

    Raises:
        InputError: The source cannot be read, or does not fit the model. The model is unchanged.
    """
    target = model.state_dict()
    checkpoint = read_weights(source, target)
    state = _match_backbone_prefix(checkpoint.state, target)
    state = _match_bands(checkpoint.source, state, target, bands)
    matching = {
        name: state[name]
        for name, tensor in target.items()
        if name in state and list(state[name].shape) == tensor.shape
    }
    missing = [name for name in target if name not in matching]
    unexpected = [name for name in state if name not in target]
    has_head = any(name in state for name in target if not name.startswith(BACKBONE))
    other_classes = has_head and all(name in state and name in missing for name in CLASSIFIER)
    mismatched = [name for name in missing if has_head or name.startswith(BACKBONE)]
    if other_classes:
        mismatched = [name for name in mismatched if name not in CLASSIFIER]
    if not matching or (strict and (mismatched or unexpected)):
        expected = infer_architecture(target)
        raise InputError(_mismatch_message(checkpoint, expected, mismatched, unexpected))
    for name, value in matching.items():
        with np.errstate(over="ignore"):  # reported below
            matching[name] = tensor = paddle.to_tensor(value, dtype=target[name].dtype)
        if paddle.is_floating_point(tensor) and not paddle.isfinite(tensor).all():
            dtype = str(target[name].dtype).rpartition(".")[2]
            raise InputError(
                f"{checkpoint.source}: {name} has numbers beyond the range of the model's {dtype}; "
                "use another checkpoint, or a model of a wider type."
            )
    for name, value in matching.items():
        target[name].set_value(value)
    epsilon = checkpoint.norm_epsilon
    norms = [layer for layer in model.sublayers() if type(layer).__name__ == "LayerNorm"]
    if epsilon is not None and any(layer._epsilon != epsilon for layer in norms):
        logger.warning(
            f"{checkpoint.source} comes from {checkpoint.format}, where the LayerNorm epsilon is "
            f"{epsilon:g}: set model.backbone.norm_epsilon={epsilon:g} for identical outputs"
        )
    if other_classes:
        logger.warning(
            f"{checkpoint.source} has another number of classes than the model: the classifier is "
            "not loaded"
        )
    return LoadResult(list(matching), missing, unexpected, checkpoint)


def load_pretrained(model: nn.Layer, source: Source | None) -> None:
    """Load and log the weights that a config's ``pretrained`` key names; None loads nothing.

    The backbone's ``pretrained_bands`` is the rule for another number of bands.
    """
    if source is None:
        return
    rule = getattr(getattr(model, "backbone", model), "pretrained_bands", None)
    result = load_weights(model, source, bands=rule)
    checkpoint, loaded = result.checkpoint, len(result.loaded)
    logger.info(
        f"Loaded {loaded} of {loaded + len(result.missing)} tensors from {checkpoint.source} "
        f"({checkpoint.format}, {checkpoint.architecture})"
    )


def adapt_bands(kernels: np.ndarray, count: int, rule: str) -> np.ndarray:
    """Kernels for images of several bands from those for RGB.

    Args:
        kernels: Float array ``[C, 3, k, k]``, of a convolution.
        count: Number of bands, N.
        rule: ``"rgb"``: bands 1 to 3 get the kernels for R, G and B, and each other band their
            mean; with fewer than three bands as ``"mean"``. ``"mean"``: every band gets
            ``(R + G + B) / N``, so that N equal bands give what a gray RGB image gave.

    Returns:
        Array ``[C, N, k, k]`` of the same type.
    """
    mean = kernels.mean(axis=1, keepdims=True, dtype="float64")
    if rule == "rgb" and count >= 3:
        adapted = np.concatenate([kernels, mean.repeat(count - 3, axis=1)], axis=1)
    else:
        adapted = (mean * 3 / count).repeat(count, axis=1)
    return adapted.astype(kernels.dtype)


def _match_backbone_prefix(state, target):
    """Add or remove the backbone's prefix, as in the model's names."""
    is_whole, for_whole = (any(n.startswith(BACKBONE) for n in s) for s in (state, target))
    if for_whole and not is_whole:
        return {BACKBONE + name: value for name, value in state.items()}
    if is_whole and not for_whole:
        return {n[len(BACKBONE) :]: v for n, v in state.items() if n.startswith(BACKBONE)}
    return state


def _match_bands(source, state, target, rule):
    """Adapt the first kernels to the model's number of bands; an error without a rule."""
    name = next((n for n in (FIRST_KERNELS, BACKBONE + FIRST_KERNELS) if n in target), None)
    if name not in state or np.ndim(state[name]) != 4:
        return state
    kernels, (channels, expected, *size) = state[name], target[name].shape
    actual = kernels.shape[1]
    if actual == expected or kernels.shape != (channels, actual, *size):
        return state
    if rule is None or actual != 3:
        raise InputError(
            f"{source}: is for {actual}-band images, and the model for {expected}-band ones; set "
            f"img_channels of the data sets and in_channels of the model to {actual}, or use other "
            "weights."
        )
    logger.info(f"{source}: adapted from 3 to {expected} bands by pretrained_bands: {rule}")
    return {**state, name: adapt_bands(kernels, expected, rule)}


def _mismatch_message(checkpoint, expected, mismatched, unexpected):
    actual = checkpoint.architecture
    if actual is not None and expected is not None and not _compatible(actual, expected):
        hint = _config_hint(actual)
        return f"{checkpoint.source}: is a {actual}, and the model is a {expected}; {hint}."
    reasons = []
    if mismatched:
        reasons.append(f"lacks, or has in another shape, {_first(mismatched)}")
    if unexpected:
        reasons.append(f"has unexpected tensors, {_first(unexpected)}")
    return f"{checkpoint.source}: {' and '.join(reasons)}; use a checkpoint of the same model."


def _compatible(a, b):
    if (a.embed_dims, a.depths) != (b.embed_dims, b.depths):
        return False
    heads = {(x.embedding_dim, x.stage_projection) for x in (a, b)}
    return len(heads) == 1 or (None, None) in heads


def _config_hint(architecture):
    """The config settings that build this architecture."""
    embed_dims, depths = list(architecture.embed_dims), list(architecture.depths)
    hint = f"set the backbone's embed_dims {embed_dims} and depths {depths}"
    if architecture.variant is not None:
        hint = f"set the backbone to MixVisionTransformer_{architecture.variant}"
    if architecture.embedding_dim is not None:
        hint += f", embedding_dim to {architecture.embedding_dim}"
        hint += f" and stage_projection to {architecture.stage_projection}"
    return hint


def _first(names):
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

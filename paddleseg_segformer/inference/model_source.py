"""Where a trained model comes from, and what inference needs to know about it.

A model is given by a config and weights; by a checkpoint of a training run, whose manifest holds
the config; by an exported graph with its ``deploy.yaml``; or by weights only.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from paddleseg.cvlibs import Config
from paddleseg.utils.utils import get_in_channels

from ..config import build, load_config
from ..data import ADE20K, class_names, palette
from ..errors import InputError
from ..fs import StrPath
from ..weights import local_path, read_weights
from ..yaml_reader import parse_yaml
from . import manifest
from .manifest import MANIFEST, ManifestError

logger = logging.getLogger(__name__)

DESCRIPTION = "deploy.yaml"
ONNX_METADATA_KEY = "deploy"  # key of the text of deploy.yaml in an ONNX file's metadata
EXPORT_SUFFIXES = (".yaml", ".json", ".pdmodel", ".pdiparams")  # select the folder
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@dataclass(frozen=True)
class ModelSource:
    """A trained model: its config, weights and classes.

    ``config`` has ``model``, the validation transforms and ``test_config``; ``output_op`` and
    ``input_shape`` are the options that a graph was exported with.
    """

    config: Config
    weights: str  # path of the weights, or of the exported graph
    classes: list[str]
    palette: np.ndarray  # uint8 [classes, 3], RGB
    output_op: str | None = None
    input_shape: list | None = None
    assumes_normalize: bool = False  # whether nothing says how images are normalized
    # Types of the values in the training images' files; none if unknown.
    image_types: list[str] = field(default_factory=list)

    @property
    def channels(self) -> int:
        """Number of bands of the images that the model takes."""
        if self.input_shape is not None:
            return self.input_shape[1]
        (cls,) = build(self.config, "val_dataset_class")
        default = self.config.val_dataset_cfg.get("img_channels", getattr(cls, "IMG_CHANNELS", 3))
        return get_in_channels(self.config.model_cfg) or default


def resolve_model(source: StrPath, config: Config | StrPath | None = None) -> ModelSource:
    """Find the config, weights and classes of a model.

    Args:
        source: A checkpoint's file or folder (from a training run, or a published one in any format
            of ``load_weights``), its URL or the name of a Hugging Face repository, a folder with
            ``deploy.yaml`` or a file in it, or an ONNX file.
        config: PaddleSeg's ``Config`` or its path, to be used with the weights in ``source``; None
            means the config found in or beside ``source``.

    Raises:
        InputError: The source does not exist, or is not a known kind of model.
    """
    if config is not None:
        if not isinstance(config, Config):
            config = load_config(config)
        names_and_colors, types = _names_and_colors(config), trained_types(source)
        return ModelSource(config, os.fspath(source), *names_and_colors, image_types=types)
    path = local_path(os.fspath(source))
    if path.suffix in EXPORT_SUFFIXES and (path.parent / DESCRIPTION).is_file():
        path = path.parent
    if path.is_dir() and (path / "model.onnx").is_file():
        path = path / "model.onnx"
    if path.suffix == ".onnx":
        return _from_deploy_yaml(path, _read_metadata(path))
    if (path / DESCRIPTION).is_file():
        # YAML has no surrogates, so that other encodings are errors of parsing.
        text = (path / DESCRIPTION).read_text(encoding="utf-8", errors="surrogateescape")
        return _from_deploy_yaml(path, text)
    folder = path if path.is_dir() else path.parent
    if (folder / MANIFEST).is_file():
        return _from_manifest(str(path), folder)
    return _from_weights(source, path)


def trained_types(weights: StrPath) -> list[str]:
    """``image_types`` in the manifest beside weights or in their folder; none without it."""
    path = Path(weights)
    path = (path if path.is_dir() else path.parent) / MANIFEST
    try:
        content = manifest.parse(path)
        manifest.check(content, ["image_types"], path)
    except (ManifestError, InputError):  # the weights may be used without it
        return []
    return content.get("image_types") or []


def inference_config(model, transforms, test_config=None):
    """PaddleSeg's ``Config`` for inference, without the sections that only training needs."""
    config = Config.__new__(Config)
    dataset = {"type": "Dataset", "num_classes": model["num_classes"]}
    config.dic = {
        "model": model,
        "train_dataset": dataset,  # PaddleSeg's builder reads its type
        "val_dataset": {**dataset, "transforms": transforms},
        "test_config": test_config or {},
    }
    return config


def _names_and_colors(config):
    """Class names and palette of a config's data set, whose files need not exist."""
    (cls,) = build(config, "val_dataset_class")
    options = config.val_dataset_cfg
    dataset = SimpleNamespace(
        num_classes=options.get("num_classes", getattr(cls, "NUM_CLASSES", None)),
        dataset_root=options.get("dataset_root"),
        CLASS_NAMES=getattr(cls, "CLASS_NAMES", None),
        PALETTE=getattr(cls, "PALETTE", None),
    )
    return class_names(dataset), palette(dataset)


def _from_manifest(weights, folder):
    path = folder / MANIFEST
    try:
        content = manifest.parse(path)
        manifest.check(content, ("config", "classes", "palette", "image_types"), path)
        settings, classes = content["config"], content["classes"]
        colors = np.array(content["palette"], dtype="uint8")
        transforms = settings.get("val_dataset", {}).get("transforms", [{"type": "Normalize"}])
        model = {**settings["model"], "num_classes": len(classes)}
    except ManifestError as error:
        reason = f"cannot be read ({error})"
        raise InputError(f"{path}: {reason}; pass the config with --config.") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: holds no config; pass it with --config.") from error
    config = inference_config(model, transforms, settings.get("test_config"))
    if "type" in settings.get("val_dataset", {}):
        config.dic["val_dataset"] = {**settings["val_dataset"], "transforms": transforms}
    types = content.get("image_types") or []
    return ModelSource(config, weights, classes, colors, image_types=types)


def _from_deploy_yaml(path, text):
    try:
        description = parse_yaml(text)
        deploy, classes = description["Deploy"], description["classes"]
        colors = np.array(description["palette"], dtype="uint8")
        config = inference_config({"num_classes": len(classes)}, deploy["transforms"])
        exported = deploy["output_op"], deploy["input_shape"]
        types = [str(x) for x in description.get("image_types", ())]
        return ModelSource(config, str(path), classes, colors, *exported, image_types=types)
    except (InputError, KeyError, TypeError, ValueError) as error:
        reason = "was not exported by tools/export.py; export the model again"
        raise InputError(f"{path}: {reason}.") from error


def _read_metadata(path):
    if not path.is_file():
        raise InputError(f"{path}: no such file.")
    try:
        import onnx
    except ImportError as error:
        raise InputError(f"{path}: needs onnx; pip install 'paddleseg-segformer[onnx]'.") from error
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # of protobuf
        raise InputError(f"{path}: cannot be read as an ONNX file.") from error
    return next(
        (entry.value for entry in model.metadata_props if entry.key == ONNX_METADATA_KEY), ""
    )


def _from_weights(source, path):
    """A SegFormer whose architecture is inferred from its weights; no resize before the model."""
    checkpoint = read_weights(path)
    architecture = checkpoint.architecture
    if architecture is None or architecture.num_classes is None:
        reason = "does not have all weights of a SegFormer, so its architecture is unknown"
        raise InputError(f"{source}: {reason}; pass the config with --config.")
    model = {
        "type": "SegFormer",
        "num_classes": architecture.num_classes,
        "embedding_dim": architecture.embedding_dim,
        "stage_projection": architecture.stage_projection,
        "backbone": {
            "type": "MixVisionTransformer",
            "embed_dims": list(architecture.embed_dims),
            "depths": list(architecture.depths),
            "norm_epsilon": checkpoint.norm_epsilon,
        },
    }
    normalize = {"type": "Normalize", **IMAGENET}
    if architecture.in_channels != 3:
        model["backbone"]["in_channels"] = architecture.in_channels
        normalize = {"type": "Normalize"}
    known = {"CLASS_NAMES": ADE20K.CLASS_NAMES, "PALETTE": ADE20K.PALETTE}
    if architecture.num_classes != len(ADE20K.CLASS_NAMES):
        known = {"CLASS_NAMES": _hugging_face_names(path if path.is_dir() else path.parent)}
    dataset = SimpleNamespace(num_classes=architecture.num_classes, **known)
    statistics = "ImageNet" if "mean" in normalize else "mean 0.5, std 0.5"
    logger.warning(
        "%s has no preprocessing info; using no resize and %s normalization", source, statistics
    )
    config = inference_config(model, [normalize])
    names, colors = class_names(dataset), palette(dataset)
    types = ["uint8"] if "mean" in normalize else []  # ImageNet's statistics are of photos
    options = {"assumes_normalize": True, "image_types": types}
    return ModelSource(config, str(path), names, colors, **options)


def _hugging_face_names(folder):
    """Class names in the config.json of a Hugging Face folder, or None."""
    try:
        labels = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]
        return [labels[str(index)] for index in range(len(labels))]
    except (OSError, ValueError, KeyError, TypeError):
        return None

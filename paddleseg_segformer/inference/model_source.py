"""Everything that using a trained model needs, wherever it comes from.

A model is known by a configuration and its weights; by a checkpoint of a run, whose manifest holds
the configuration; by an exported graph, whose description holds the rest; or by its weights alone.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import yaml
from paddleseg.cvlibs import Config

from ..config import build, load_config
from ..data import ADE20K, class_names, palette
from ..errors import InputError
from ..fs import StrPath
from ..weights import read_weights

logger = logging.getLogger(__name__)

MANIFEST, DESCRIPTION = "manifest.json", "deploy.yaml"
EXPORTED = (".yaml", ".json", ".pdmodel", ".pdiparams")  # what PaddleSeg's users point at
# What an ONNX file's metadata calls the same description.
METADATA = "deploy"
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@dataclass(frozen=True)
class ModelSource:
    """A trained model.

    Attributes:
        config: PaddleSeg's ``Config``: ``model``, the validation transforms, ``test_config``.
        weights: Path of the weights, or of the exported graph.
        classes: Names.
        palette: uint8 array ``[classes, 3]``, RGB.
        output_op, input_shape: Of an exported graph, as it was exported; else None.
    """

    config: Config
    weights: str
    classes: list[str]
    palette: np.ndarray
    output_op: str | None = None
    input_shape: list | None = None


def resolve_model(source: StrPath, config: Config | StrPath | None = None) -> ModelSource:
    """Find out what a user means by a model.

    Args:
        source: A checkpoint's file or folder (of a run of this project, or any published one that
            ``load_weights`` reads), a folder with ``deploy.yaml`` or a file of it, or an ONNX file.
        config: PaddleSeg's ``Config`` or the path of one, where the source is to be taken as its
            weights; None looks beside the source, or into it.

    Returns:
        ``ModelSource``.

    Raises:
        InputError: There is nothing, or it is nothing known.
    """
    path = Path(source)
    if config is not None:
        if not isinstance(config, Config):
            config = load_config(config)
        return ModelSource(config, str(path), *_names_and_colors(config))
    if path.suffix in EXPORTED and (path.parent / DESCRIPTION).is_file():
        path = path.parent
    if path.is_dir() and (path / "model.onnx").is_file():
        path = path / "model.onnx"
    if path.suffix == ".onnx":
        return _of_description(path, _read_metadata(path))
    if (path / DESCRIPTION).is_file():
        text = (path / DESCRIPTION).read_text(encoding="utf-8")
        return _of_description(path, text)
    folder = path if path.is_dir() else path.parent
    if (folder / MANIFEST).is_file():
        return _of_manifest(str(path), folder)
    return _of_weights(source)


def inference_config(model, transforms, test_config=None):
    """A configuration for using a model: what is only for training has no place in it."""
    config = Config.__new__(Config)
    dataset = {"type": "Dataset", "num_classes": model["num_classes"]}
    config.dic = {
        "model": model,
        "train_dataset": dataset,  # PaddleSeg's builder asks for its kind
        "val_dataset": {**dataset, "transforms": transforms},
        "test_config": test_config or {},
    }
    return config


def _names_and_colors(config):
    """Class names and palette as the configuration's data set has them, which need not be there."""
    (dataset,) = build(config, "val_dataset_class")
    options = config.val_dataset_cfg
    known = {
        key: getattr(dataset, key) for key in ("CLASS_NAMES", "PALETTE") if hasattr(dataset, key)
    }
    classes = options.get("num_classes", getattr(dataset, "NUM_CLASSES", None))
    stand_in = SimpleNamespace(
        num_classes=classes, dataset_root=options.get("dataset_root", ""), **known
    )
    return class_names(stand_in), palette(stand_in)


def _of_manifest(weights, folder):
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        settings, classes = manifest["config"], manifest["classes"]
        colors = np.array(manifest["palette"], dtype="uint8")
        transforms = settings.get("val_dataset", {}).get("transforms", [{"type": "Normalize"}])
        model = {**settings["model"], "num_classes": len(classes)}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / MANIFEST}: cannot be read; give the config, too.") from error
    config = inference_config(model, transforms, settings.get("test_config"))
    return ModelSource(config, weights, classes, colors)


def _of_description(path, text):
    try:
        description = yaml.safe_load(text)
        deploy, classes = description["Deploy"], description["classes"]
        colors = np.array(description["palette"], dtype="uint8")
        config = inference_config({"num_classes": len(classes)}, deploy["transforms"])
        exported = deploy["output_op"], deploy["input_shape"]
        return ModelSource(config, str(path), classes, colors, *exported)
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: has no description by tools/export.py; export the model again."
        ) from error


def _read_metadata(path):
    if not path.is_file():
        raise InputError(f"{path}: no such file.")
    try:
        import onnx
    except ImportError as error:
        raise InputError(f"{path}: needs onnx; pip install 'paddleseg-segformer[onnx]'.") from error
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own
        raise InputError(f"{path}: cannot be read as an ONNX file.") from error
    return next((entry.value for entry in model.metadata_props if entry.key == METADATA), "")


def _of_weights(source):
    """A SegFormer whose weights tell what it is; its images are seen as they are."""
    checkpoint = read_weights(source)
    found = checkpoint.architecture
    if found is None or found.classes is None:
        raise InputError(
            f"{source}: is no whole SegFormer, so that it does not tell what model it is for; "
            "give the config, too."
        )
    model = {
        "type": "SegFormer",
        "num_classes": found.classes,
        "embedding_dim": found.width,
        "stage_projection": found.stage_projection,
        "backbone": {
            "type": "MixVisionTransformer",
            "embed_dims": list(found.channels),
            "depths": list(found.depths),
            "norm_epsilon": checkpoint.norm_epsilon,
        },
    }
    names = _hugging_face_names(Path(source))
    known = {"CLASS_NAMES": ADE20K.CLASS_NAMES, "PALETTE": ADE20K.PALETTE}
    if found.classes != len(ADE20K.CLASS_NAMES):
        known = {"CLASS_NAMES": names}
    stand_in = SimpleNamespace(num_classes=found.classes, **known)
    logger.warning(
        "%s does not tell how its images are prepared: they are seen as they are, normalized as "
        "for ImageNet",
        source,
    )
    config = inference_config(model, [{"type": "Normalize", **IMAGENET}])
    return ModelSource(config, str(source), class_names(stand_in), palette(stand_in))


def _hugging_face_names(folder):
    """The classes' names in the config.json of a Hugging Face folder, or None."""
    try:
        labels = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]
        return [labels[str(index)] for index in range(len(labels))]
    except (OSError, ValueError, KeyError, TypeError):
        return None

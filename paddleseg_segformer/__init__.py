"""SegFormer for PaddleSeg. Importing this package registers its components with PaddleSeg."""

# ruff: noqa: E402
# isort: off
from .device import tune_cpu  # first: it reads the environment before Paddle changes it
from .requirements import check_requirements

check_requirements()  # before the modules that import Paddle and PaddleSeg

# isort: on
from paddleseg.cvlibs import manager

from . import compat
from .data import ADE20K, Dataset, band_transforms
from .data.band_transforms import Padding, ScalePadding
from .data.transforms import Normalize, PhotometricDistortion, RandomCategoryCrop, ResizeToFit
from .errors import InputError
from .inference import Prediction, Predictor
from .models import (
    CrossEntropyLoss,
    MixVisionTransformer,
    MixVisionTransformer_B0,
    MixVisionTransformer_B1,
    MixVisionTransformer_B2,
    MixVisionTransformer_B3,
    MixVisionTransformer_B4,
    MixVisionTransformer_B5,
    SegFormer,
)
from .weights import load_weights

__version__ = "0.1.0"
__all__ = [
    "ADE20K",
    "CrossEntropyLoss",
    "Dataset",
    "InputError",
    "MixVisionTransformer",
    "MixVisionTransformer_B0",
    "MixVisionTransformer_B1",
    "MixVisionTransformer_B2",
    "MixVisionTransformer_B3",
    "MixVisionTransformer_B4",
    "MixVisionTransformer_B5",
    "Normalize",
    "Padding",
    "PhotometricDistortion",
    "Prediction",
    "Predictor",
    "RandomCategoryCrop",
    "ResizeToFit",
    "ScalePadding",
    "SegFormer",
    "load_weights",
    "tune_cpu",
]

# Not manager.add_component: that warns where PaddleSeg has the name, and replacing it is the aim.
for _manager, *_components in (
    (manager.MODELS, SegFormer, *compat.MODELS),
    (
        manager.BACKBONES,
        MixVisionTransformer,
        MixVisionTransformer_B0,
        MixVisionTransformer_B1,
        MixVisionTransformer_B2,
        MixVisionTransformer_B3,
        MixVisionTransformer_B4,
        MixVisionTransformer_B5,
        *compat.BACKBONES,
    ),
    (manager.DATASETS, ADE20K, Dataset),
    (
        manager.TRANSFORMS,
        Normalize,
        Padding,
        PhotometricDistortion,
        RandomCategoryCrop,
        ResizeToFit,
        ScalePadding,
        band_transforms.PaddingByAspectRatio,
        band_transforms.RandomAffine,
        band_transforms.RandomBlur,
        band_transforms.RandomDistort,
        band_transforms.RandomNoise,
        band_transforms.RandomPaddingCrop,
        band_transforms.RandomRotation,
        band_transforms.Resize,
    ),
    (manager.LOSSES, CrossEntropyLoss, *compat.LOSSES),
):
    _manager.components_dict.update({c.__name__: c for c in _components})

"""Other implementations that the tests compare with."""

import importlib


def paddleseg_segformer_model(size, num_classes, embedding_dim):
    """PaddleSeg's own SegFormer; the installed package serves as an oracle."""
    backbones = importlib.import_module("paddleseg.models.backbones.mix_transformer")
    models = importlib.import_module("paddleseg.models.segformer")
    backbone = getattr(backbones, f"MixVisionTransformer_{size}")()
    return models.SegFormer(num_classes, backbone, embedding_dim)

"""A small model for the tests of the server."""

import json

from small_models import SMALLEST, save, smallest_model

# Class names with HTML characters must be escaped.
CLASSES = ["sky", "<b>road</b>", "tree & bush", "car", "person"]
PALETTE = [[70, 130, 180], [128, 64, 128], [107, 142, 35], [0, 0, 142], [220, 20, 60]]


def write_model(folder):
    """Write a checkpoint with its manifest, as training does; returns the folder."""
    save(smallest_model(len(CLASSES)), folder / "model.pdparams")
    backbone = {"type": "MixVisionTransformer", **SMALLEST}
    config = {"model": {"type": "SegFormer", "embedding_dim": 32, "backbone": backbone}}
    manifest = {"config": config, "classes": CLASSES, "palette": PALETTE}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder

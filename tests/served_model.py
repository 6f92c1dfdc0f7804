"""A small model as the server's tests serve it."""

import json

from small_models import save, small_model

# What is said of HTML's characters in a name must not be HTML.
CLASSES = ["sky", "<b>road</b>", "tree & bush", "car", "person"]
PALETTE = [[70, 130, 180], [128, 64, 128], [107, 142, 35], [0, 0, 142], [220, 20, 60]]


def write_model(folder):
    """Write a model and its manifest, as a run does, into a folder; returns the folder."""
    save(small_model(len(CLASSES)), folder / "model.pdparams")
    backbone = {"type": "MixVisionTransformer_B0"}
    config = {"model": {"type": "SegFormer", "embedding_dim": 32, "backbone": backbone}}
    manifest = {"config": config, "classes": CLASSES, "palette": PALETTE}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder

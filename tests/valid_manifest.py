"""A manifest with each entry that one may have."""

VALID = {
    "config": {"model": {"type": "SegFormer"}, "a": [1, None, "b"]},
    "classes": ["a", "b"],
    "palette": [[0, 128, 255], [1, 2, 3], [4, 5, 6]],
    "image_types": ["uint8"],
    "arrangement": {"accumulate": 1},
    "versions": {"python": "3.9"},
    "optimizer": "AdamW",
    "parameters": {"a.weight": "linear_0.w_0", "a.bias": "linear_0.b_0"},
    "run": "6f",
    "seed": 3,
    "iteration": 4,
    "samples": 16,
    "evaluated": 4,
    "evaluations_since_best": 1,
    "skipped_in_a_row": 0,
    "skipped": {"steps": 0, "samples": 2},
    "best": {"miou": 0.5, "iteration": 4, "ema_miou": 0.25, "ema_iteration": 2},
    "seconds": 12.5,
    "scaler": {},
    "files": {"model.pdparams": {"bytes": 3, "sha256": "ab"}},
}

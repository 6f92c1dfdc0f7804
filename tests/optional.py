"""Skips tests that need packages which are not installed."""

import pytest

from paddleseg_segformer.deploy.quantize import check_quantizer
from paddleseg_segformer.errors import InputError


def skip_without_quantizer():
    for package in ("onnx", "paddle2onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    try:
        check_quantizer()
    except InputError:
        pytest.skip("ml_dtypes is not installed")

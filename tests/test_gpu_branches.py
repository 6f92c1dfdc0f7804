"""Each branch of the package on a device or dtype is forced, or has a test of its own."""

from pathlib import Path

import pytest
from gpu_branches import ELSEWHERE, decisions, dtype_comparisons

TESTS = Path(__file__).parent
# Of operators, models and training steps. The dtypes of images are those of files.
DTYPE_TESTS = {
    "engine/distillation:Distillation.__call__": (
        "engine/test_distillation.py::test_the_loss_and_its_gradient"
    ),
    "engine/optimizer:fuse_updates": (
        "engine/test_fused_adamw.py::test_other_optimizers_stay_as_they_are"
    ),
    "engine/train_step:_to_host": "engine/test_train_step.py::test_losses_and_norm_are_exact",
    "models/losses:CrossEntropyLoss.forward": "models/test_losses.py::test_mean_over_valid_pixels",
    "models/segformer:SegFormer.forward": (
        "models/test_mixed_precision.py::test_dtypes_of_the_operators"
    ),
    "ops/attention:_has_fused_kernel": "ops/test_attention.py::test_fused",
    "ops/attention:scaled_dot_product_attention.attend": (
        "models/test_mixed_precision.py::test_dtypes_of_the_operators"
    ),
    "ops/cross_entropy:_UpsampledCrossEntropy.forward": (
        "ops/test_cross_entropy.py::test_half_precision_is_computed_in_float32"
    ),
    "ops/layers:drop_path_factors": (
        "ops/test_layers.py"
        "::test_drop_path_of_half_precision_keeps_samples_with_the_exact_probability"
    ),
    "ops/memory_efficient:_cast": (
        "ops/test_memory_efficient.py::test_gradients_of_add_scaled_have_their_inputs_types"
    ),
}


def test_a_branch_on_a_dtype_has_a_test():
    names = {name for _, _, name in dtype_comparisons()}
    assert {n for n in names if n.startswith(("engine/", "models/", "ops/"))} <= DTYPE_TESTS.keys()


def test_exceptions_are_decisions():
    assert ELSEWHERE.keys() <= {name for _, _, name in decisions()}


@pytest.mark.parametrize("test", sorted({*ELSEWHERE.values(), *DTYPE_TESTS.values()}))
def test_named_tests_exist(test):
    file, _, function = test.partition("::")
    assert f"\ndef {function}(" in (TESTS / file).read_text(encoding="utf-8")


def test_all_decisions_are_found():
    """One of each kind: a method of a place, a function of Paddle, and one imported by name."""
    names = {name for _, _, name in decisions()}
    assert {"ops/layers:add_bias", "ops/resize:bands", "device:num_threads"} <= names

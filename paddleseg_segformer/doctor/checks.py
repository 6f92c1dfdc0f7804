"""The list of all checks, in the order of the table."""

from __future__ import annotations

from functools import partial

from . import machine, operators, runs, speed, steps
from .operators import TF32_BOUND, check_operator
from .runner import Check

HALF = {"fp16": "float16", "bf16": "bfloat16"}
# NVIDIA's switch, which a process reads before its first operator: products of float32 are exact
# enough to find an error of 1%, which TF32's rounding would hide.
TF32_OFF = {"NVIDIA_TF32_OVERRIDE": "0"}


def all_checks(on_gpu: bool) -> list[Check]:
    """All checks of a GPU, or of a CPU; the latter with those that need a GPU, to be skipped."""
    checks = [
        Check("versions", machine.check_versions),
        Check("device", machine.check_device),
        Check("driver", machine.check_driver, gpus=1),
        Check("TF32", machine.check_tf32, gpus=1),
    ]
    for name in operators.operators():
        function = partial(check_operator, name=name, dtype="float32")
        checks.append(Check(f"{name}, fp32", function, environment=TF32_OFF))
    checks += [
        Check("label map, fp32", operators.check_label_map, environment=TF32_OFF),
        Check("stochastic depth, fp32", operators.check_drop_path, environment=TF32_OFF),
    ]
    checks += _operators_on_gpu() if on_gpu else [Check("operators, TF32, fp16, bf16", None, 1)]
    for short, dtype in HALF.items():
        function = partial(operators.check_attention_kernel, dtype=dtype)
        checks.append(Check(f"attention's kernel, {short}", function, gpus=1))
    size = 256 if on_gpu else 64
    for variant, gpus in (("B0", 0), ("B2", 1)):
        for name, environment in (("fp32", TF32_OFF), ("TF32", {})):
            bound = "float32" if name == "fp32" else name
            function = partial(steps.check_step, variant=variant, bound_name=bound, size=size)
            gpus_needed = gpus if name == "fp32" else 1
            checks.append(Check(f"step, {variant}, {name}", function, gpus_needed, environment))
    for variant in ("B0", "B2"):
        function = partial(steps.check_half_layers, variant=variant)
        checks.append(Check(f"half-precision layers, {variant}, bf16", function, gpus=1))
    checks += [
        Check("step with NaN, fp32", steps.check_skipped_step),
        Check("step with overflow, fp16", steps.check_overflow, gpus=1),
        Check("out of memory", steps.check_out_of_memory, gpus=1, alone=True),
    ]
    for precision in ("fp32", "bf16", "fp16"):
        gpus = 0 if precision == "fp32" else 1
        function = partial(runs.check_quickstart, precision=precision)
        checks.append(Check(f"quick start, {precision}", function, gpus))
    checks.append(Check("resume, fp32", runs.check_resume))
    for variant in ("B0", "B2"):
        for batch in (2, 16):
            for precision in ("fp32", "bf16"):
                gpus = 0 if (batch, precision) == (2, "fp32") else 1
                options = {"variant": variant, "batch_size": batch, "precision": precision}
                name = f"speed, {variant}, batch {batch}, {precision}"
                function = partial(runs.check_speed, **options)
                checks.append(Check(name, function, gpus, alone=True))
        for precision in ("fp32", "bf16"):
            options = {"variant": variant, "precision": precision}
            function = partial(speed.check_host_share, **options)
            checks.append(Check(f"host's time of a step, {variant}, {precision}", function, gpus=1))
            name = f"PyTorch, {variant}, batch 16, {precision}"
            function = partial(speed.check_pytorch, **options)
            checks.append(Check(name, function, gpus=1, alone=True))
    return [*checks, Check("two GPUs as one", runs.check_two_gpus, gpus=2, alone=True)]


def _operators_on_gpu():
    """The operators in the types whose products are in less than float32."""
    checks = []
    for name in operators.operators():
        function = partial(check_operator, name=name, dtype="float32", bound=TF32_BOUND)
        checks.append(Check(f"{name}, TF32", function))
        for short, dtype in HALF.items():
            checks.append(
                Check(f"{name}, {short}", partial(check_operator, name=name, dtype=dtype))
            )
    return checks

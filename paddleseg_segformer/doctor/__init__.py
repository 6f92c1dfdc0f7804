"""Checks of a machine before training on it; see ``segformer doctor``."""

from .checks import all_checks
from .runner import FAIL, PASS, SKIP, Check, Context, Result, Row, run_checks

__all__ = [
    "FAIL",
    "PASS",
    "SKIP",
    "Check",
    "Context",
    "Result",
    "Row",
    "all_checks",
    "run_checks",
]

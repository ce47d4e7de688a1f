"""Does a rule of one's own keep the contract? Public checks, as scikit-learn's `check_estimator` is."""

from .algorithms import (
    EVERY,
    OPTIMIZERS,
    PATTERNS,
    STEPS,
    check_against_masked,
    check_algorithm,
    check_checkpoint,
    check_settings,
    check_update,
    convolution_model,
    default_pattern,
    example_signals,
    linear_model,
    reason_against,
    refusal,
)
from .criteria import check_criterion, pruning_data, pruning_model

__all__ = [
    "EVERY",
    "OPTIMIZERS",
    "PATTERNS",
    "STEPS",
    "check_against_masked",
    "check_algorithm",
    "check_checkpoint",
    "check_criterion",
    "check_settings",
    "check_update",
    "convolution_model",
    "default_pattern",
    "example_signals",
    "linear_model",
    "pruning_data",
    "pruning_model",
    "reason_against",
    "refusal",
]

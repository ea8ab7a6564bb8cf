"""The public conformance suite: what any torch optimizer should do, and what its users suffer where it does not."""

from untuned.testing.conformance.check import CHECKS, Check
from untuned.testing.conformance.runner import Pool, Result, check_optimizer
from untuned.testing.conformance.target import CAPABILITIES, Target, TargetError

__all__ = ["CAPABILITIES", "CHECKS", "Check", "Pool", "Result", "Target", "TargetError", "check_optimizer"]

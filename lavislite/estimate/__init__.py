"""``lavislite estimate``: what a recipe needs, found out without data, weights or a GPU.

A training step of the real code is followed on tensors that have shapes but no numbers
(`blueprint`, `step`, `ledger`); what the strategies make of it is arithmetic (`sizes`, `memory`).
"""

from lavislite.estimate.estimate import Estimate, estimate

__all__ = ["Estimate", "estimate"]

"""Conditions as torchmetrics metrics, each a thin class over `lightning_landscape.functional`."""

from lightning_landscape.conditions.alpha_beta import AlphaBeta

__all__ = ["AlphaBeta"]

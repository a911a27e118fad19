"""Pure tensor mathematics on columns of the table of probes; one condition a file."""

from lightning_landscape.functional.alpha_beta import (
    AlphaBetaPair,
    RunningBestAlphaBeta,
    alpha_beta_impossible,
    alpha_beta_margin,
    alpha_beta_vertices,
    alpha_beta_violations,
    best_alpha_beta,
    beta_min,
    interpolation_error,
)
from lightning_landscape.functional.gradient_angle import cosine
from lightning_landscape.functional.polyak_lojasiewicz import polyak_lojasiewicz_ratio
from lightning_landscape.functional.smoothness import smoothness_ratio

__all__ = [
    "AlphaBetaPair",
    "RunningBestAlphaBeta",
    "alpha_beta_impossible",
    "alpha_beta_margin",
    "alpha_beta_vertices",
    "alpha_beta_violations",
    "best_alpha_beta",
    "beta_min",
    "cosine",
    "interpolation_error",
    "polyak_lojasiewicz_ratio",
    "smoothness_ratio",
]

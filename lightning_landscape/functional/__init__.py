"""Pure tensor functions on columns of the probe table; one condition a file."""

from lightning_landscape.functional.aiming import aiming_ratio
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
from lightning_landscape.functional.constants import (
    QUANTILES,
    Constant,
    largest_constant,
    smallest_constant,
)
from lightning_landscape.functional.error_bound import error_bound_ratio
from lightning_landscape.functional.gradient_angle import cosine
from lightning_landscape.functional.polyak_lojasiewicz import polyak_lojasiewicz_ratio
from lightning_landscape.functional.quadratic_growth import quadratic_growth_ratio
from lightning_landscape.functional.quasar_convexity import (
    quasar_convexity_interval,
    quasar_convexity_ratio,
)
from lightning_landscape.functional.relaxed_polyak_lojasiewicz import (
    relaxed_polyak_lojasiewicz_ratio,
)
from lightning_landscape.functional.restricted_secant import restricted_secant_ratio
from lightning_landscape.functional.smoothness import secant_smoothness_ratio, smoothness_ratio
from lightning_landscape.functional.star_convexity import star_convexity_holds
from lightning_landscape.functional.upper_error_bound import upper_error_bound_ratio
from lightning_landscape.functional.weak_strong_convexity import weak_strong_convexity_ratio

__all__ = [
    "QUANTILES",
    "AlphaBetaPair",
    "Constant",
    "RunningBestAlphaBeta",
    "aiming_ratio",
    "alpha_beta_impossible",
    "alpha_beta_margin",
    "alpha_beta_vertices",
    "alpha_beta_violations",
    "best_alpha_beta",
    "beta_min",
    "cosine",
    "error_bound_ratio",
    "interpolation_error",
    "largest_constant",
    "polyak_lojasiewicz_ratio",
    "quadratic_growth_ratio",
    "quasar_convexity_interval",
    "quasar_convexity_ratio",
    "relaxed_polyak_lojasiewicz_ratio",
    "restricted_secant_ratio",
    "secant_smoothness_ratio",
    "smallest_constant",
    "smoothness_ratio",
    "star_convexity_holds",
    "upper_error_bound_ratio",
    "weak_strong_convexity_ratio",
]

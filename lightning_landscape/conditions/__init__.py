"""Conditions as torchmetrics metrics, thin classes over `lightning_landscape.functional`."""

from lightning_landscape.conditions._worst_case import WorstCase
from lightning_landscape.conditions.aiming import Aiming
from lightning_landscape.conditions.alpha_beta import AlphaBeta
from lightning_landscape.conditions.error_bound import ErrorBound
from lightning_landscape.conditions.gradient_angle import GradientAngle
from lightning_landscape.conditions.polyak_lojasiewicz import PolyakLojasiewicz
from lightning_landscape.conditions.quadratic_growth import QuadraticGrowth
from lightning_landscape.conditions.quasar_convexity import QuasarConvexity
from lightning_landscape.conditions.relaxed_polyak_lojasiewicz import RelaxedPolyakLojasiewicz
from lightning_landscape.conditions.restricted_secant import RestrictedSecant
from lightning_landscape.conditions.smoothness import SecantSmoothness, Smoothness
from lightning_landscape.conditions.star_convexity import StarConvexity
from lightning_landscape.conditions.upper_error_bound import UpperErrorBound
from lightning_landscape.conditions.weak_strong_convexity import WeakStrongConvexity

__all__ = [
    "Aiming",
    "AlphaBeta",
    "ErrorBound",
    "GradientAngle",
    "PolyakLojasiewicz",
    "QuadraticGrowth",
    "QuasarConvexity",
    "RelaxedPolyakLojasiewicz",
    "RestrictedSecant",
    "SecantSmoothness",
    "Smoothness",
    "StarConvexity",
    "UpperErrorBound",
    "WeakStrongConvexity",
    "WorstCase",
]

"""The theorems' bounds as functions of numbers, without a run.

A class holds the constants of one bound. It has the formula, the arguments and the source. Its
``shape()`` is the bound as a function of the pair (α, β), and ``at(alpha, beta)`` is its value at
one pair. A function of the same name, such as `sgd` for `SGD`, returns this value in one call.

Every bound is ``(distance + noise + noise_rate · δ + spread · β)/(slope · δ − offset)``, where
δ = α − β. The seven numbers do not depend on the pair, so that the best pair is found exactly.
Most bounds are on ``min_{k<K} E[f(x_k) − f*]``.
"""

from lightning_landscape.bounds.functional._adagrad_norm import (
    AdaGradNormMax,
    AdaGradNormMaxSharp,
    adagrad_norm_max,
    adagrad_norm_max_sharp,
)
from lightning_landscape.bounds.functional._bound import Bound
from lightning_landscape.bounds.functional._gradient_descent import (
    GradientDescent,
    gradient_descent,
)
from lightning_landscape.bounds.functional._ngn import (
    NGN,
    NGNDecreasing,
    NGNSharp,
    ngn,
    ngn_decreasing,
    ngn_sharp,
)
from lightning_landscape.bounds.functional._sgd import (
    SGD,
    SGDDecreasing,
    SGDSchedule,
    SGDSharp,
    sgd,
    sgd_decreasing,
    sgd_schedule,
    sgd_sharp,
)
from lightning_landscape.bounds.functional._sps import (
    DecSPS,
    DecSPSSharp,
    SPSMax,
    SPSMaxSharp,
    dec_sps,
    dec_sps_sharp,
    sps_max,
    sps_max_sharp,
)
from lightning_landscape.bounds.functional._trajectory import Trajectory, trajectory

__all__ = [
    "NGN",
    "SGD",
    "AdaGradNormMax",
    "AdaGradNormMaxSharp",
    "Bound",
    "DecSPS",
    "DecSPSSharp",
    "GradientDescent",
    "NGNDecreasing",
    "NGNSharp",
    "SGDDecreasing",
    "SGDSchedule",
    "SGDSharp",
    "SPSMax",
    "SPSMaxSharp",
    "Trajectory",
    "adagrad_norm_max",
    "adagrad_norm_max_sharp",
    "dec_sps",
    "dec_sps_sharp",
    "gradient_descent",
    "ngn",
    "ngn_decreasing",
    "ngn_sharp",
    "sgd",
    "sgd_decreasing",
    "sgd_schedule",
    "sgd_sharp",
    "sps_max",
    "sps_max_sharp",
    "trajectory",
]

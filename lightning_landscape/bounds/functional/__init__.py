r"""The theorems' bounds on ``min_{k<K} E[f(x_k) − f*]`` as functions of numbers, and the certificate of one trajectory.

Every bound has the shape ``(distance + noise + noise_rate · δ + spread · β)/(slope · δ − offset)`` with numbers that do not
depend on the pair (α, β), δ = α − β. ``<name>_shape`` returns it as such a function, over which the best pair is found exactly.
"""

from lightning_landscape.bounds.functional._adagrad_norm import (
    adagrad_norm_max,
    adagrad_norm_max_shape,
    adagrad_norm_max_sharp,
    adagrad_norm_max_sharp_shape,
)
from lightning_landscape.bounds.functional._gradient_descent import (
    gradient_descent,
    gradient_descent_shape,
)
from lightning_landscape.bounds.functional._ngn import (
    ngn,
    ngn_decreasing,
    ngn_decreasing_shape,
    ngn_shape,
    ngn_sharp,
    ngn_sharp_shape,
)
from lightning_landscape.bounds.functional._sgd import (
    sgd,
    sgd_decreasing,
    sgd_decreasing_shape,
    sgd_schedule,
    sgd_schedule_shape,
    sgd_shape,
    sgd_sharp,
    sgd_sharp_shape,
)
from lightning_landscape.bounds.functional._sps import (
    dec_sps,
    dec_sps_shape,
    dec_sps_sharp,
    dec_sps_sharp_shape,
    sps_max,
    sps_max_shape,
    sps_max_sharp,
    sps_max_sharp_shape,
)
from lightning_landscape.bounds.functional._trajectory import trajectory, trajectory_shape

__all__ = [
    "adagrad_norm_max",
    "adagrad_norm_max_shape",
    "adagrad_norm_max_sharp",
    "adagrad_norm_max_sharp_shape",
    "dec_sps",
    "dec_sps_shape",
    "dec_sps_sharp",
    "dec_sps_sharp_shape",
    "gradient_descent",
    "gradient_descent_shape",
    "ngn",
    "ngn_decreasing",
    "ngn_decreasing_shape",
    "ngn_shape",
    "ngn_sharp",
    "ngn_sharp_shape",
    "sgd",
    "sgd_decreasing",
    "sgd_decreasing_shape",
    "sgd_schedule",
    "sgd_schedule_shape",
    "sgd_shape",
    "sgd_sharp",
    "sgd_sharp_shape",
    "sps_max",
    "sps_max_shape",
    "sps_max_sharp",
    "sps_max_sharp_shape",
    "trajectory",
    "trajectory_shape",
]

"""Optimizers whose scalar step size follows the rule of a theorem; one method a file."""

from lightning_landscape.optim.adagrad_norm_max import AdaGradNormMax
from lightning_landscape.optim.dec_sps import DecSPS
from lightning_landscape.optim.ngn import NGN
from lightning_landscape.optim.sps_max import SPSMax

__all__ = ["NGN", "AdaGradNormMax", "DecSPS", "SPSMax"]

"""The ways in which measuring ends before its end, in this process or in another one."""

from __future__ import annotations

import warnings

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn


class NotMeasurable(Exception):
    """A probe that has no value: the loss is not a finite scalar, or what it needs is gone."""


class Interrupted(Exception):
    """Ctrl-C while probes were evaluated; what is done is reported."""


class FailedElsewhere(Exception):
    """Another process failed, and so all stop measuring."""


class RefusedElsewhere(MisconfigurationException):
    """Another process found something that cannot be measured."""


def said(error: BaseException) -> str:
    """Return an error as one line for people."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def warn_once(error: BaseException, message: str) -> None:
    """Warn of a failure, in a run of several processes: the one that failed says what happened, the first one that one did."""
    if isinstance(error, (FailedElsewhere, RefusedElsewhere)):
        rank_zero_warn(message)
    else:
        warnings.warn(message, stacklevel=2)

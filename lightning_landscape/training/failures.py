"""Errors that stop the measurement of a probe or of the run, in this process or in another one."""

from __future__ import annotations

import warnings

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn


class NotMeasurable(Exception):
    """A probe cannot be measured: its loss is not a finite scalar, or its record is unreadable."""


class Interrupted(Exception):
    """The user pressed Ctrl-C during the evaluation. The probes evaluated so far are reported."""


class FailedElsewhere(Exception):
    """Another process failed, so this one stops measuring, too."""


class RefusedElsewhere(MisconfigurationException):
    """Another process refused to measure this run."""


def said(error: BaseException) -> str:
    """Return the class and message of an error as text."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def warn_once(error: BaseException, message: str) -> None:
    """Warn about a failure from the process that failed, and from the first process.

    Args:
        error: the failure, as this process sees it.
        message: the text of the warning.
    """
    if isinstance(error, (FailedElsewhere, RefusedElsewhere)):
        rank_zero_warn(message)
    else:
        warnings.warn(message, stacklevel=2)

"""Checks of the arguments of extras."""

from __future__ import annotations

from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException


def check_whole(extra: str, name: str, value: Any, *, least: int) -> None:
    """Refuse a value that is no whole number of ``least`` or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        refuse(extra, name, value, f"whole numbers of {least} or more")


def refuse(extra: str, name: str, value: Any, supported: str) -> None:
    """Raise the refusal of an argument.

    Raises:
        MisconfigurationException: always.
    """
    raise MisconfigurationException(
        f"{extra}({name}={value!r}): supported are {supported}; pass one of these"
    )

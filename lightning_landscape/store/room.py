"""Whether the disk has room for a store."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_landscape.store.codecs import bytes_of_probe, bytes_of_start
from lightning_landscape.store.store import WAYS_OUT
from lightning_landscape.vectors.parameters import local_values
from lightning_landscape.vectors.sharding import local

GIB = 2**30
MIB = 2**20


def store_budget(
    folder: Path,
    gib: float,
    parameters: Mapping[str, Tensor],
    others: Mapping[str, Tensor],
    dtype: str,
    *,
    stored: bool,
) -> int:
    """Return the bytes that the store may use; refuse a budget without room for two probes.

    Args:
        folder: where the store will be.
        gib: the user's limit; half of the free disk is another.
        parameters: x; a probe holds it and a gradient of its size, of shards this process's part.
        others: the other parameters, where some of them are trained too: each probe holds them.
        dtype: of the store.
        stored: whether this process stores x and its gradients at all.

    Raises:
        MisconfigurationException: naming what is needed, what is there, and the ways out.
    """
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    budget = int(min(gib * GIB, free / 2))
    beside = sum(local(parameter).nbytes for parameter in others.values())
    own = local_values(parameters)
    needed, once = beside, 0
    if stored:
        needed += bytes_of_probe(own, dtype)
        once = bytes_of_start(own, dtype)
    if (stored or others) and budget < 2 * needed + once:
        more = f", {beside / MIB:.1f} of them for other parameters in training" if others else ""
        more += f", and {once / MIB:.1f} MiB more for x_0" if once else ""
        raise MisconfigurationException(
            f"LandscapeMonitor needs {needed / MIB:.1f} MiB a probe for parameters and gradient"
            f"{more}, and may use {budget / MIB:.1f} MiB (Store(gib={gib:g}), {free / GIB:.1f} GiB "
            f"free at {existing}); supported are budgets of two probes or more: {WAYS_OUT}"
        )
    return budget

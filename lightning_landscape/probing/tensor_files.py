"""Files of tensors: safetensors, read as they lie on disk, written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from lightning_landscape.probes import SCHEMA

_METADATA = {"format": "pt", "schema": str(SCHEMA)}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a safetensors file.

    Raises:
        OSError: if that cannot be, with the number of what is the matter: a full disk is ``ENOSPC``.
    """
    dense = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    try:
        save_file(dense, path, metadata={**_METADATA, **(metadata or {})})
    except Exception as error:  # safetensors reports a full disk as its own error
        code = next((c for c in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) if f"(os error {c})" in str(error)), errno.EIO)
        raise OSError(code, str(error), str(path)) from error


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a safetensors file atomically."""
    partial = path.with_name(f".{path.name}.tmp")
    write_tensors(partial, tensors)
    os.replace(partial, path)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_private(path: Path, content: bytes) -> None:
    """Write bytes to a file that only the user may read."""
    rest = memoryview(content)
    # without a buffer: a process that is forked meanwhile would have a copy of it
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb", buffering=0) as file:
        while rest:
            rest = rest[file.write(rest) :]


def link(source: Path, target: Path) -> None:
    """Let a second name stand for a file; where that cannot be, copy it."""
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError:
        shutil.copy2(source, target)

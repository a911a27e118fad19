"""Files of tensors: safetensors, large ones past the system's cache; written whole or not at all where that is asked for."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from lightning_landscape.probes import SCHEMA
from lightning_landscape.probing.memory import DTYPES, Laid, Layout, Memory, bytes_of, laid_out

_METADATA = {"format": "pt", "schema": str(SCHEMA)}
_DIRECT = 1 << 21
"""Bytes of an image from which it is written past the cache of the system"""
_ANEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
_PIECE = 1 << 23
_PIECES = 512
"""As many buffers in one call as every system takes"""


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, *, private: bool = False
) -> None:
    """Write tensors to a safetensors file, from where they lie.

    What was laid out by `Memory` and is large goes past the system's cache where that is possible: for its pages the system
    would spend more of the CPU's time than the rest takes, and push the user's data out.

    Args:
        path: the file; an older one goes.
        tensors: by name, strided.
        metadata: text by name, for the header.
        private: whether the user alone may read it.

    Raises:
        OSError: if that cannot be, with the number of what is the matter: a full disk is ``ENOSPC``.
    """
    about = {**_METADATA, **(metadata or {})}
    mode = 0o600 if private else 0o666
    try:
        if isinstance(tensors, Laid) and len(tensors.image) >= _DIRECT:
            _write_image(path, tensors.image, tensors.layout, about, mode)
            return
        on_host = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
        layout = laid_out(on_host)
        _write(path, [memoryview(layout.header(about)), *bytes_of(on_host[name] for name in layout.spans)], mode)
    except (TypeError, ValueError) as error:
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    except OSError as error:  # of a write, it does not say where
        raise OSError(error.errno, error.strerror, str(path)) from error


def save_tensors(path: Path, tensors: Mapping[str, Tensor], *, private: bool = False) -> None:
    """Write tensors to a safetensors file atomically."""
    partial = path.with_name(f".{path.name}.tmp")
    write_tensors(partial, tensors, private=private)
    os.replace(partial, path)


def _write_image(path: Path, image: memoryview, layout: Layout, metadata: Mapping[str, str], mode: int) -> None:
    image[: layout.before] = layout.header(metadata, nbytes=layout.before)
    file, direct = _open_directly(path, _ANEW, mode)
    try:
        written = 0
        while written < len(image):
            written += _past_the_cache(os.write, file, image[written : written + _PIECE], direct)
        os.ftruncate(file, layout.before + layout.nbytes)
    finally:
        os.close(file)


def read_tensors(path: Path, memory: Memory) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file that `write_tensors` has written, in lent memory, and the texts of its header.

    A large file is read past the system's cache, where that is possible.

    Args:
        path: the file.
        memory: lends the memory.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no such file.
    """
    size = path.stat().st_size
    file, direct = _open_directly(path, os.O_RDONLY, 0) if size >= _DIRECT else (_open(path, os.O_RDONLY, 0), 0)
    try:
        flat, image = memory.lend(size)
        read = 0
        while read < size:
            more = _past_the_cache(_read_into, file, image[read : read + _PIECE], direct)
            if not more:
                raise OSError(errno.EIO, f"found {read} bytes of {size}", str(path))
            read += more
    finally:
        os.close(file)
    before = 8 + int.from_bytes(image[:8], "little")
    try:
        header = json.loads(bytes(image[8 : min(before, size)]))
        metadata = header.pop("__metadata__", {})
        return {name: _tensor(flat[before:size], **about) for name, about in header.items()}, metadata
    except (LookupError, TypeError, RuntimeError) as error:
        raise ValueError(f"found no file of tensors in {path}: {error}") from error


def _tensor(data: Tensor, dtype: str, shape: Sequence[int], data_offsets: Sequence[int]) -> Tensor:
    start, end = data_offsets
    return data[start:end].view(DTYPES[dtype]).view(shape)


def _read_into(file: int, piece: memoryview) -> int:
    with open(file, "rb", buffering=0, closefd=False) as reader:
        return reader.readinto(piece) or 0


def _open_directly(path: Path, flags: int, mode: int) -> tuple[int, int]:
    """Open a file for access past the system's cache, where there is such a thing; return the flag of it as well."""
    direct = getattr(os, "O_DIRECT", 0)
    try:
        return _open(path, flags | direct, mode), direct
    except OSError as error:
        if error.errno != errno.EINVAL or not direct:
            raise
    return _open(path, flags, mode), 0


def _past_the_cache(access: Callable[[int, memoryview], int], file: int, piece: memoryview, direct: int) -> int:
    """Read or write some bytes; through the system's cache from here on where they cannot go past it."""
    try:
        return access(file, piece)
    except OSError as error:
        if error.errno != errno.EINVAL or not direct or sys.platform != "linux":
            raise
    import fcntl  # not on every system

    fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) & ~direct)
    return access(file, piece)


def _write(path: Path, pieces: Sequence[memoryview], mode: int) -> None:
    file = _open(path, _ANEW, mode)
    try:
        waiting = list(pieces)
        while waiting:
            written = os.writev(file, waiting[:_PIECES]) if hasattr(os, "writev") else os.write(file, waiting[0])
            while waiting and written >= len(waiting[0]):
                written -= len(waiting.pop(0))
            if written:
                waiting[0] = waiting[0][written:]
    finally:
        os.close(file)


def _open(path: Path, flags: int, mode: int) -> int:
    # without a buffer: a process that is forked meanwhile would have a copy of it
    return os.open(path, flags | getattr(os, "O_BINARY", 0), mode)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_private(path: Path, content: bytes) -> None:
    """Write bytes to a file that only the user may read."""
    _write(path, [memoryview(content)] if content else [], 0o600)


def link(source: Path, target: Path) -> None:
    """Let a second name stand for a file; where that cannot be, copy it."""
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError:
        shutil.copy2(source, target)

"""Files of tensors: safetensors, large ones past the system's cache; written whole or not at all where that is asked for."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_landscape.probes import SCHEMA
from lightning_landscape.store.memory import DTYPES, PAGE, Laid, Layout, Memory, bytes_of, laid_out

_METADATA = {"format": "pt", "schema": str(SCHEMA)}
_DIRECT = 1 << 19
"""Bytes of a file from which it is written and read past the cache of the system.

Whoever reads or writes it waits for the disk, in the background while training, and leaves the CPU to others meanwhile.
"""
_ANEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
_PIECE = 1 << 23
_PIECES = 512
"""As many buffers in one call as every system takes"""
_SCRATCH = Memory(most=1)
"""Where what lies anywhere is on the way to the disk"""


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    private: bool = False,
) -> None:
    """Write tensors to a safetensors file.

    A large one goes past the system's cache where that is possible: for its pages the system would spend more of the CPU's time
    than all else takes, and push the user's data out. What was laid out by `Memory` is written from where it lies.

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
        pieces = [
            memoryview(bytearray(layout.header(about))),
            *bytes_of(on_host[name] for name in layout.spans),
        ]
        if layout.nbytes < _DIRECT:
            _write(path, pieces, mode)
        else:
            _write_aligned(path, pieces, sum(map(len, pieces)), mode)
    except (TypeError, ValueError) as error:
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    except OSError as error:  # of a write, it does not say where
        raise OSError(error.errno, error.strerror, str(path)) from error


def save_tensors(path: Path, tensors: Mapping[str, Tensor], *, private: bool = False) -> None:
    """Write tensors to a safetensors file atomically."""
    partial = path.with_name(f".{path.name}.tmp")
    write_tensors(partial, tensors, private=private)
    os.replace(partial, path)


def _write_image(
    path: Path, image: memoryview, layout: Layout, metadata: Mapping[str, str], mode: int
) -> None:
    image[: layout.before] = layout.header(metadata, nbytes=layout.before)
    file, direct = _open_directly(path, _ANEW, mode)
    try:
        _write_out(file, image, direct)
        os.ftruncate(file, layout.before + layout.nbytes)
    finally:
        os.close(file)


def _write_out(file: int, image: memoryview, direct: int) -> None:
    """Write whole pages."""
    written = 0
    while written < len(image):
        written += _past_the_cache(os.write, file, image[written : written + _PIECE], direct)


def _write_aligned(path: Path, pieces: Iterable[memoryview], size: int, mode: int) -> None:
    """Write pieces of any length past the system's cache, by way of memory that begins where a page does.

    Args:
        path: the file.
        pieces: its bytes.
        size: how many they are.
        mode: of the file.
    """
    place, image = _SCRATCH.lend(min(size, _PIECE))
    room, filled = len(image), 0
    file, direct = _open_directly(path, _ANEW, mode)
    try:
        for piece in pieces:
            # through ctypes, which lets go of Python meanwhile, and stays in this thread: training goes on beside
            source, start = ctypes.addressof(ctypes.c_char.from_buffer(piece)), 0
            while start < len(piece):
                count = min(len(piece) - start, room - filled)
                ctypes.memmove(place.data_ptr() + filled, source + start, count)
                start, filled = start + count, filled + count
                if filled == room:
                    _write_out(file, image, direct)
                    filled = 0
        _write_out(file, image[: -(-filled // PAGE) * PAGE], direct)
        os.ftruncate(file, size)
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
    file, direct = (
        _open_directly(path, os.O_RDONLY, 0)
        if size >= _DIRECT
        else (_open(path, os.O_RDONLY, 0), 0)
    )
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
        header, texts = _parsed(bytes(image[8 : min(before, size)]), path)
        _check_spans([about["data_offsets"] for about in header.values()], size - before)
        return {name: _tensor(flat[before:size], **about) for name, about in header.items()}, texts
    except (LookupError, TypeError, RuntimeError) as error:
        raise ValueError(f"found no file of tensors in {path}: {error}") from error


def read_header(path: Path) -> tuple[list[str], dict[str, str]]:
    """Return the names of the tensors in a file and the texts of its header, without reading tensors.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no such file.
    """
    with path.open("rb", buffering=0) as file:
        size = int.from_bytes(file.read(8), "little")
        header, texts = _parsed(
            file.read(size) if size < os.fstat(file.fileno()).st_size else b"", path
        )
    return list(header), texts


def _parsed(text: bytes, path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what a header says of the tensors, by name, and its texts.

    Raises:
        ValueError: if it is none.
    """
    header = json.loads(text)
    texts = header.pop("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(texts, dict) or not all(isinstance(value, str) for value in texts.values()):
        raise ValueError(f"found no file of tensors in {path}")
    return header, texts


def _check_spans(spans: Sequence[Sequence[int]], size: int) -> None:
    """See whether tensors lie one after the other and fill a file.

    Raises:
        ValueError: if not.
    """
    edges = [0, *(edge for span in sorted(map(tuple, spans)) for edge in span), size]
    if any(start != end for end, start in zip(edges[::2], edges[1::2], strict=True)):
        raise ValueError("found tensors that do not fill their file")


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


def _past_the_cache(
    access: Callable[[int, memoryview], int], file: int, piece: memoryview, direct: int
) -> int:
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
            written = (
                os.writev(file, waiting[:_PIECES])
                if hasattr(os, "writev")
                else os.write(file, waiting[0])
            )
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


def link(source: Path, target: Path) -> None:
    """Let a second name stand for a file; where that cannot be, copy it."""
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError:
        shutil.copy2(source, target)

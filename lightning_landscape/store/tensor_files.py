"""Safetensors files of our own: an error has its number, and large tensors pass the system's cache.

Pages for the cache take a CPU longer than all else, and push the user's data out of it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lightning_landscape.probes import SCHEMA
from lightning_landscape.store.layout import DTYPES, Laid, layout_of
from lightning_landscape.store.memory import Memory

_TEXTS = {"format": "pt", "schema": str(SCHEMA)}
_ANEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
_PIECE = 1 << 26
"""Bytes of one call"""
_BUFFERS = 512
"""Buffers of one call: every system takes so many"""


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    texts: Mapping[str, str] | None = None,
    *,
    private: bool = False,
) -> None:
    """Write tensors to a safetensors file, in the place of an older one.

    Large tensors that `Memory` has laid out are written directly, from where they lie.

    Args:
        path: the file.
        tensors: by name, strided.
        texts: metadata by name.
        private: whether only the user may read it.

    Raises:
        OSError: if that is not possible; a full disk has the number ``ENOSPC``.
    """
    texts, mode = {**_TEXTS, **(texts or {})}, 0o600 if private else 0o666
    try:
        if isinstance(tensors, Laid):
            _write_image(path, tensors, texts, mode)
        else:
            _write(path, tensors, texts, mode)
    except (TypeError, ValueError) as error:
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    except OSError as error:  # that of a write does not name the file
        raise OSError(error.errno, error.strerror, str(path)) from error


def save_tensors(path: Path, tensors: Mapping[str, Tensor], *, private: bool = False) -> None:
    """Write tensors to a safetensors file atomically."""
    partial = path.with_name(f".{path.name}.tmp")
    write_tensors(partial, tensors, private=private)
    os.replace(partial, path)


def _write(path: Path, tensors: Mapping[str, Tensor], texts: Mapping[str, str], mode: int) -> None:
    on_host = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    layout = layout_of(on_host)
    ordered = (on_host[name].reshape(-1).view(torch.uint8) for name in layout.spans)
    pieces = [
        memoryview(layout.header(texts)),
        *(flat.numpy().data for flat in ordered if len(flat)),
    ]
    file = _open(path, _ANEW, mode)
    try:
        first = 0
        while first < len(pieces):
            written = _write_some(file, pieces[first : first + _BUFFERS])
            while first < len(pieces) and written >= len(pieces[first]):
                written -= len(pieces[first])
                first += 1
            if written:
                pieces[first] = pieces[first][written:]
    finally:
        os.close(file)


def _write_some(file: int, pieces: Sequence[memoryview]) -> int:
    return os.writev(file, pieces) if hasattr(os, "writev") else os.write(file, pieces[0])


def _write_image(path: Path, laid: Laid, texts: Mapping[str, str], mode: int) -> None:
    image, layout, written = laid.image, laid.layout, 0
    image[: layout.before] = layout.header(texts, nbytes=layout.before)
    file, direct = _open_directly(path, _ANEW, mode)
    try:
        while written < len(image):
            written += _access(os.write, file, image[written : written + _PIECE], direct)
        os.ftruncate(file, layout.before + layout.nbytes)
    finally:
        os.close(file)


def _open_directly(path: Path, flags: int, mode: int = 0) -> tuple[int, int]:
    """Open a file for direct access, if the system has that; return the flag of it as well."""
    direct = getattr(os, "O_DIRECT", 0)
    try:
        return _open(path, flags | direct, mode), direct
    except OSError as error:
        if error.errno != errno.EINVAL or not direct:
            raise
    return _open(path, flags, mode), 0


def _access(
    access: Callable[[int, memoryview], int], file: int, piece: memoryview, direct: int
) -> int:
    """Read or write some bytes; by the system's cache from here on if they cannot pass it."""
    try:
        return access(file, piece)
    except OSError as error:
        if error.errno != errno.EINVAL or not direct or sys.platform != "linux":
            raise
    import fcntl  # not on every system

    fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) & ~direct)
    return access(file, piece)


def _open(path: Path, flags: int, mode: int = 0) -> int:
    # no buffer: a process that is forked meanwhile would have a copy of it
    return os.open(path, flags | getattr(os, "O_BINARY", 0), mode)


def read_tensors(
    path: Path, memory: Memory | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file, and its metadata.

    It is read rather than mapped: a disk that fails gives an error, not the end of the process.

    Args:
        path: the file.
        memory: lends the memory of a large file; None for torch's.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no safetensors file.
    """
    flat, size = _read(path, memory)
    before = 8 + int.from_bytes(flat[:8].numpy().tobytes(), "little")
    try:
        header = json.loads(flat[8:before].numpy().tobytes() if before <= size else b"")
        texts = header.pop("__metadata__", {})
        if not all(isinstance(text, str) for text in texts.values()):
            raise TypeError("its metadata are no texts")
        _check_spans([about["data_offsets"] for about in header.values()], size - before)
        return {name: _view(flat[before:size], **about) for name, about in header.items()}, texts
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"found no tensors in {path}: {error}") from error


def _read(path: Path, memory: Memory | None) -> tuple[Tensor, int]:
    """Return the bytes of a file, and how many they are."""
    size, read = path.stat().st_size, 0
    if memory is not None and size >= memory.large:
        (flat, buffer), (file, direct) = memory.lend(size), _open_directly(path, os.O_RDONLY)
    else:
        flat, (file, direct) = torch.empty(size, dtype=torch.uint8), (_open(path, os.O_RDONLY), 0)
        buffer = flat.numpy().data
    try:
        while read < size:
            more = _access(_read_into, file, buffer[read : read + _PIECE], direct)
            if not more:
                raise OSError(errno.EIO, f"found {read} bytes of {size}", str(path))
            read += more
    finally:
        os.close(file)
    return flat, size


def _read_into(file: int, piece: memoryview) -> int:
    with open(file, "rb", buffering=0, closefd=False) as reader:
        return reader.readinto(piece) or 0


def _check_spans(spans: Sequence[Sequence[int]], size: int) -> None:
    """Check that tensors lie one after the other and fill a file.

    Raises:
        ValueError: if not.
    """
    edges = [0, *(edge for span in sorted(map(tuple, spans)) for edge in span), size]
    if any(start != end for end, start in zip(edges[::2], edges[1::2], strict=True)):
        raise ValueError("its tensors do not fill it")


def _view(data: Tensor, dtype: str, shape: Sequence[int], data_offsets: Sequence[int]) -> Tensor:
    start, end = data_offsets
    return data[start:end].view(DTYPES[dtype]).view(shape)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where that is not possible."""
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError:
        shutil.copy2(source, target)

"""Files of tensors: safetensors reads ours, we read theirs; written directly or by the cache."""

import errno
import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lightning_landscape.store import tensor_files
from lightning_landscape.store.memory import Memory
from lightning_landscape.store.tensor_files import (
    read_tensors,
    save_tensors,
    write_tensors,
)
from tests.store.test_memory import TENSORS, drawn

LARGE = {"w": torch.randn(900, 600), "b": torch.randn(601).bfloat16(), "n": torch.tensor(7)}
"""No whole pages"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TENSORS)
def test_what_we_write_the_library_reads(tmp_path, kinds):
    tensors = drawn(kinds)
    write_tensors(tmp_path / "x", tensors, {"factor": "0.5"})
    same(load_file(tmp_path / "x"), tensors)
    with safe_open(tmp_path / "x", framework="pt") as file:
        assert file.metadata()["factor"] == "0.5"
    read, header = read_tensors(tmp_path / "x", Memory(most=1, large=0))
    same(read, tensors)
    assert header["factor"] == "0.5"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TENSORS)
def test_what_the_library_writes_we_read(tmp_path, kinds):
    save_file(drawn(kinds), tmp_path / "x", metadata={"a": "b"})
    read, header = read_tensors(tmp_path / "x", Memory(most=1, large=0))
    same(read, drawn(kinds))
    assert header == {"a": "b"}


@pytest.mark.parametrize("laid", [True, False])
def test_large_files(laid, tmp_path):
    memory = Memory(most=1, large=0)
    tensors = memory.on_host(LARGE) if laid else LARGE
    for _ in range(2):  # the second time there is a file
        write_tensors(tmp_path / "x", tensors, {"factor": "0.5"})
    same(load_file(tmp_path / "x"), LARGE)
    read, header = read_tensors(tmp_path / "x", memory)
    same(read, LARGE)
    assert header["factor"] == "0.5"


def flags_of(monkeypatch, **refused):
    """Return the flags with which files are opened; refuse what is told."""
    seen, opened = [], os.open

    def noting(path, flags, *args, **kwargs):
        seen.append(flags)
        if refused.get("open") and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return opened(path, flags, *args, **kwargs)

    monkeypatch.setattr(tensor_files.os, "open", noting)
    return seen


@linux
def test_large_files_go_past_the_cache_and_small_ones_do_not(tmp_path, monkeypatch):
    memory, seen = Memory(most=1, large=10**6), flags_of(monkeypatch)
    write_tensors(tmp_path / "x", memory.on_host(LARGE))
    read_tensors(tmp_path / "x", memory)
    read_tensors(tmp_path / "x")
    write_tensors(tmp_path / "y", memory.on_host({"x": torch.zeros(9)}))
    read_tensors(tmp_path / "y", memory)
    write_tensors(tmp_path / "z", LARGE)  # not laid out
    assert [bool(flags & os.O_DIRECT) for flags in seen] == [True, True, *[False] * 4]


@linux
@pytest.mark.parametrize("piece", [1 << 12, 1 << 13, 1 << 19, 1 << 23])
def test_an_image_is_written_directly_to_its_end(piece, tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr(tensor_files, "_PIECE", piece)
    past, cut = [], os.ftruncate

    def note(file, size):
        # still: nothing had to go through the cache
        past.append(bool(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT))
        cut(file, size)

    monkeypatch.setattr(tensor_files.os, "ftruncate", note)
    edges = {
        "fits": torch.arange(3 << 12),
        "odd": torch.randn(4097).to(torch.int8),
        "none": torch.zeros(0),
        **LARGE,
    }
    write_tensors(tmp_path / "x", Memory(most=1, large=0).on_host(edges), {"factor": "0.5"})
    assert past == [True]
    same(load_file(tmp_path / "x"), edges)
    read, texts = read_tensors(tmp_path / "x", Memory(most=1, large=0))
    same(read, edges)
    assert texts["factor"] == "0.5"


def test_more_tensors_than_one_call_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_files, "_BUFFERS", 3)
    tensors = {str(place): torch.randn(place) for place in range(20)}
    write_tensors(tmp_path / "x", tensors)
    same(load_file(tmp_path / "x"), tensors)


@pytest.mark.parametrize("vectors", [True, False])
def test_a_call_may_write_less_than_it_was_given(vectors, tmp_path, monkeypatch):
    write = os.write

    def some(file, pieces):
        return write(file, pieces[0][:100])

    if vectors:
        monkeypatch.setattr(os, "writev", some)
    else:
        monkeypatch.delattr(os, "writev")
        monkeypatch.setattr(os, "write", lambda file, piece: some(file, [piece]))
    write_tensors(tmp_path / "x", {"a": torch.arange(90), "b": torch.randn(7)})
    same(load_file(tmp_path / "x"), read_tensors(tmp_path / "x")[0])


def test_a_file_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_files, "_PIECE", 1 << 12)
    tensors = {"a": torch.arange(900), "b": torch.randn(7)}
    write_tensors(tmp_path / "x", tensors)
    for memory in (None, Memory(most=1, large=0)):
        same(read_tensors(tmp_path / "x", memory)[0], tensors)
    monkeypatch.setattr(tensor_files, "_PIECE", 7)
    same(read_tensors(tmp_path / "x")[0], tensors)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 8, b"\2" + b"\0" * 7 + b"[]", b"\377" * 9, b"\4" + b"\0" * 7 + b"null!"],
)
def test_no_header(content, tmp_path):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match="found no tensors in"):
        read_tensors(tmp_path / "x")


@linux
def test_a_file_system_without_direct_access_is_used_through_the_cache(tmp_path, monkeypatch):
    memory, seen = Memory(most=1, large=0), flags_of(monkeypatch, open=True)
    write_tensors(tmp_path / "x", memory.on_host(LARGE))
    same(read_tensors(tmp_path / "x", memory)[0], LARGE)
    assert len(seen) == 4


@linux
@pytest.mark.parametrize("works", [0, 1])
def test_where_direct_access_fails_later_the_cache_is_used_from_there_on(
    works, tmp_path, monkeypatch
):
    import fcntl

    memory, calls = Memory(most=2, large=0), []
    monkeypatch.setattr(tensor_files, "_PIECE", 1 << 21)

    def only(access):
        def limited(file, piece):
            calls.append(file)
            if len(calls) > works and fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT:
                raise OSError(errno.EINVAL, "Invalid argument")
            return access(file, piece)

        return limited

    monkeypatch.setattr(tensor_files.os, "write", only(os.write))
    monkeypatch.setattr(tensor_files, "_read_into", only(tensor_files._read_into))
    write_tensors(tmp_path / "x", memory.on_host(LARGE))
    same(load_file(tmp_path / "x"), LARGE)
    assert len(calls) == 3  # two pieces, one of them twice
    calls.clear()
    same(read_tensors(tmp_path / "x", memory)[0], LARGE)
    assert len(calls) == 3


@linux
@pytest.mark.parametrize("tensors", [{"x": torch.zeros(5)}, LARGE])
def test_a_full_disk_says_so_and_where(tensors):
    for laid in (Memory(most=1, large=0).on_host(tensors), tensors):
        with pytest.raises(OSError, match="/dev/full") as caught:
            write_tensors(Path("/dev/full"), laid)
        assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("tensors", [{"x": torch.zeros(5)}, LARGE])
@pytest.mark.parametrize("left", [0, 5, 60, -1])
def test_a_damaged_file_is_none(tensors, left, tmp_path):
    write_tensors(tmp_path / "x", Memory(most=1, large=0).on_host(tensors))
    content = (tmp_path / "x").read_bytes()[:left]
    (tmp_path / "x").write_bytes(content)
    with pytest.raises((OSError, ValueError)):
        read_tensors(tmp_path / "x", Memory(most=1, large=0))


def test_what_safetensors_cannot_hold_is_an_os_error_with_a_reason(tmp_path):
    with pytest.raises(OSError, match="complex128; supported are") as caught:
        write_tensors(tmp_path / "x", {"x": torch.zeros(3, dtype=torch.complex128)})
    assert caught.value.errno == errno.EINVAL


def test_tensors_may_share_memory_and_lie_in_any_order(tmp_path):
    whole = torch.randn(4, 6)
    tensors = {"whole": whole, "part": whole[1:3], "turned": whole.t(), "step": whole[:, ::2]}
    write_tensors(tmp_path / "x", tensors)
    same(load_file(tmp_path / "x"), tensors)


def test_a_file_is_written_atomically(tmp_path, monkeypatch):
    save_tensors(tmp_path / "x", {"x": torch.ones(2)})
    before = (tmp_path / "x").read_bytes()

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensor_files, "_write_some", full)
    with pytest.raises(OSError, match="No space"):
        save_tensors(tmp_path / "x", {"x": torch.zeros(2)})
    assert (tmp_path / "x").read_bytes() == before


@pytest.mark.parametrize("tensors", [{"x": torch.zeros(5)}, LARGE])
def test_private_files_are_private_and_others_as_the_user_has_it(tensors, tmp_path):
    memory = Memory(most=1, large=0)
    before = os.umask(0o022)
    try:
        write_tensors(tmp_path / "private", memory.on_host(tensors), private=True)
        save_tensors(tmp_path / "public", memory.on_host(tensors))
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("private", "public")]
    assert modes == [0o600, 0o644]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["private", "public"]

"""The file of a probe's micro-batches: it comes back, and every damage is one kind of error."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lightning_landscape.store.freezing import Frozen, freeze, thaw
from lightning_landscape.store.probe_files import MOMENTS, digest_of, read_moments, write_moments


def batches():
    return [
        {"x": torch.randn(3, 2), "y": torch.tensor([1, 2]), "n": 7, "empty": torch.zeros(0)},
        [torch.ones(2).bfloat16(), "b"],
    ]


def test_micro_batches_come_back_in_their_order(tmp_path):
    there = batches()
    moments = [freeze(batch) for batch in there]
    write_moments(tmp_path, moments, {"loss": 0.1 + 0.2, "count": 9})
    read, about = read_moments(tmp_path)
    assert [moment.structure for moment in read] == [moment.structure for moment in moments]
    one, other = (thaw(moment) for moment in read)
    assert all(torch.equal(one[name], there[0][name]) for name in ("x", "y", "empty"))
    assert (one["n"], other[1]) == (7, "b")
    assert torch.equal(other[0], there[1][0])
    assert about == {"loss": 0.1 + 0.2, "count": 2}
    assert (tmp_path / MOMENTS).stat().st_mode & 0o077 == 0


def test_many_and_none_and_what_cannot_be_pickled(tmp_path):
    for moments in (
        [],
        [freeze(number) for number in range(12)],
        [Frozen(b"", {}, held=object()), freeze(1)],
    ):
        write_moments(tmp_path, moments, {})
        assert [moment.structure for moment in read_moments(tmp_path)[0]] == [
            moment.structure for moment in moments
        ]


def test_the_digest_is_of_every_part_and_of_their_order():
    assert digest_of([b"a", b"b"]) != digest_of([b"b", b"a"])
    assert digest_of([b"ab", b""]) != digest_of([b"a", b"b"])
    assert digest_of([b"a", b"b"]) == digest_of(iter([b"a", b"b"]))


def damaged(path, change=None, texts=None):
    """Write a file of tensors anew with other tensors, or other texts."""
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    if change is not None:
        change(tensors)
    save_file(tensors, path, header if texts is None else texts)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: damaged(path, lambda tensors: tensors.pop("1")),
        lambda path: damaged(path, lambda tensors: tensors.update({"7/0": torch.ones(1)})),
        lambda path: damaged(path, lambda tensors: tensors.update({"x": torch.ones(1)})),
        lambda path: damaged(path, texts={}),
        lambda path: damaged(path, texts={"probe": "3"}),
        lambda path: damaged(path, texts={"probe": "{"}),
        lambda path: damaged(path, texts={"probe": json.dumps({"count": "2"})}),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes() + b"\0"),
        lambda path: path.write_bytes(b""),
        *(
            lambda path, text=text: path.write_bytes(
                len(text).to_bytes(8, "little") + text + b"\0" * 8
            )
            for text in (
                b"null",
                b"3",
                b"[]",
                b'{"__metadata__": null}',
                b'{"__metadata__": {"probe": 3}}',
                b'{"0": 5}',
            )
        ),
    ],
)
def test_what_is_damaged_is_an_error_of_its_value_or_of_the_disk(damage, tmp_path):
    write_moments(tmp_path, [freeze(batch) for batch in batches()], {})
    damage(tmp_path / MOMENTS)
    with pytest.raises((ValueError, OSError)):
        read_moments(tmp_path)

"""Records through a codec: what comes back, what was measured of it, and x_0, the base of all."""

import errno
import json
import math
import os
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lightning_landscape.store import probe_files
from lightning_landscape.store.codecs import bytes_of_probe, bytes_of_start
from lightning_landscape.store.freezing import freeze
from lightning_landscape.store.record import CodecError, Record
from lightning_landscape.store.store import RecordStore
from lightning_landscape.training.failures import NotMeasurable
from lightning_landscape.vectors.gradients import Gradient

BUDGET = 10**9
LOSSY = ["bfloat16", "int8"]
SIZES = {"w": (70, 300), "b": (5,), "one": (1,), "none": (0,), "wide": (20_000,)}


def drawn(seed, size=1.0, dtype=torch.float32, sizes=None):
    g = torch.Generator().manual_seed(seed)
    return {
        name: size * torch.randn(shape, generator=g, dtype=dtype)
        for name, shape in (sizes or SIZES).items()
    }


def record(step, dtype=torch.float32, factor=1 / 3, following=False):
    """Return the record of a step: x_k moves away from x_0, and "b" has no gradient."""
    x, after = (
        {name: value + moved[name] for name, value in drawn(0, dtype=dtype).items()}
        for moved in (drawn(100 + k, 0.01 * k, dtype) for k in (step, step + 1))
    )
    g = drawn(200 + step, 0.1, dtype)
    del g["b"]
    moments = [freeze({"step": step})]
    after = after if following else None
    return Record(step, 0.5, moments, x, Gradient(g, factor), following=after)


def store_of(folder, codec, steps=range(6), **arguments):
    store = RecordStore(folder / "store", BUDGET, codec)
    for step in steps:
        store.write(record(step, **arguments))
    store.wait()
    assert store.all_is_well
    return store


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        assert torch.equal(found[name], value), name


def same_record(found, expected):
    same(found.x, expected.x)
    same(found.gradient.raw, expected.gradient.raw)
    assert found.following is None
    assert found.gradient.factor == expected.gradient.factor
    assert found.error == expected.error


def by_hand(probe, x, g):
    """Return the three sums, number by number in float64."""
    moved = {name: x[name].double() - value.double() for name, value in probe.x.items()}
    off = {name: g[name].double() - value.double() for name, value in probe.gradient.raw.items()}
    factor = probe.gradient.factor
    return (
        sum(float((factor * value).square().sum()) for value in off.values()),
        sum(
            factor * float((value.double() * moved[name]).sum())
            for name, value in probe.gradient.raw.items()
        ),
        sum(float(value.square().sum()) for value in moved.values()),
    )


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_the_codec_did_is_what_a_recomputation_finds(codec, dtype, tmp_path):
    store = store_of(tmp_path, codec, dtype=dtype)
    for step in range(6):
        probe, found = record(step, dtype), store.read(step)
        for values, expected in (
            (found.x, probe.x),
            (found.gradient.raw, probe.gradient.raw),
        ):
            assert {name: (t.shape, t.dtype) for name, t in values.items()} == {
                name: (t.shape, t.dtype) for name, t in expected.items()
            }
        assert found.gradient.factor == 1 / 3
        error, expected = found.error, by_hand(probe, found.x, found.gradient.raw)
        assert error.gradient == pytest.approx(expected[0], rel=1e-5)
        assert error.product == pytest.approx(expected[1], rel=1e-4, abs=1e-9)
        assert error.iterate == pytest.approx(expected[2], rel=1e-5)
        elements = sum(t.numel() for t in probe.x.values())
        assert error.iterate <= (0.01 * 0.01 * step) ** 2 * elements
        if step:
            assert error.iterate > 0
            assert error.gradient > 0


@pytest.mark.parametrize("codec", LOSSY)
def test_with_the_following_iterate_the_gradient_is_native(codec, tmp_path):
    """A codec may move a gradient by more than it changes over one step."""
    store = RecordStore(tmp_path / "store", BUDGET, codec)
    for step in range(3):
        one = record(step, following=True)
        store.write(one)
        found = store.read(step)
        same(found.gradient.raw, one.gradient.raw)
        same(found.following, one.following)
        assert found.error.gradient == 0
        assert (found.error.iterate > 0) == (step > 0)
    natively = [*one.following.values(), *one.gradient.raw.values()]
    assert store.largest > sum(tensor.nbytes for tensor in natively)


@pytest.mark.parametrize("codec", ["native", *LOSSY])
def test_the_first_record_comes_back_as_it_was(codec, tmp_path):
    store = store_of(tmp_path, codec, (3, 4))
    same_record(store.read(3), record(3))
    assert (store.read(4).error == CodecError()) == (codec == "native")


def test_shares_of_sharded_parameters(tmp_path):
    whole = store_of(tmp_path / "whole", "int8").read(3).error
    store = RecordStore(tmp_path / "store", BUDGET, "int8")
    store.shares = dict.fromkeys(SIZES, 0.25)
    store.write(record(0))
    store.write(record(3))
    error = store.read(3).error
    assert (4 * error.gradient, 4 * error.product, 4 * error.iterate) == pytest.approx(
        (whole.gradient, whole.product, whole.iterate)
    )


@pytest.mark.parametrize("codec", ["native", *LOSSY])
def test_the_sizes_that_are_said_before_are_those_on_disk(codec, tmp_path):
    store, headers = RecordStore(tmp_path / "store", BUDGET, codec), 4000
    first, second = (replace(record(step), following=None) for step in (1, 2))
    for one in (first, second):
        one.gradient.raw["b"] = torch.zeros(5)
    store.note_size(first)
    batch = sum(moment.nbytes for moment in first.moments)
    each, once = bytes_of_probe(first.x, codec), bytes_of_start(first.x, codec)
    assert store.largest == each + batch
    assert store.capacity == (BUDGET - once) // store.largest
    assert (once > 0) == (codec != "native")
    sizes = []
    for one in (first, second):
        store.write(one)
        sizes.append(store.nbytes)
    assert 0 <= sizes[0] - (store.largest + once) < headers
    assert 0 <= sizes[1] - sizes[0] - store.largest < headers
    elements = sum(value.numel() for value in first.x.values())
    per_element = {"native": 8, "bfloat16": 4, "int8": 2 * (1 + 4 / 128)}[codec]
    assert each == pytest.approx(elements * per_element, rel=0.01)


@pytest.mark.parametrize("codec", LOSSY)
def test_in_the_running_store_x_0_outlives_its_probe(codec, tmp_path):
    store = store_of(tmp_path, codec)
    before = store.read(4)
    for step in (0, 1, 2, 3):
        store.drop(step)
    same_record(store.read(4), before)
    store.write(record(6))
    assert store.read(6).error.iterate > 0


def no_links(*args):
    raise OSError(errno.EXDEV, "Invalid cross-device link")


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("codec", LOSSY)
def test_who_resumes_goes_on_from_the_same_x_0(codec, links, tmp_path, monkeypatch):
    old, whole = store_of(tmp_path / "old", codec), store_of(tmp_path / "whole", codec, range(7))
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    new = RecordStore(tmp_path / "new" / "store", BUDGET, codec)
    assert all(new.adopt(old.folder, step, old.digests[step]) for step in (0, 2, 4))
    assert 0 <= new.largest - old.largest < 3000
    assert new.capacity == (BUDGET - bytes_of_start(record(0).x, codec)) // new.largest
    shutil.rmtree(old.folder)
    new.write(record(6))
    for step in (0, 2, 4, 6):
        same_record(new.read(step), whole.read(step))


@pytest.mark.parametrize("codec", LOSSY)
def test_without_x_0_what_was_encoded_cannot_be_read_and_the_run_begins_anew(codec, tmp_path):
    old = store_of(tmp_path / "old", codec)
    new = RecordStore(tmp_path / "new", BUDGET, codec)
    assert all(new.adopt(old.folder, step, old.digests[step]) for step in (2, 4))
    with pytest.raises(NotMeasurable, match="parameters of step 2 cannot be read"):
        new.read(2)
    new.write(record(6))
    new.write(record(7))
    same_record(new.read(6), record(6))
    assert new.read(7).error.iterate > 0


def test_a_run_with_another_codec_reads_what_it_takes_over(tmp_path):
    old = store_of(tmp_path / "old", "int8")
    for codec in ("native", "bfloat16"):
        new = RecordStore(tmp_path / codec / "store", BUDGET, codec)
        assert all(new.adopt(old.folder, step, old.digests[step]) for step in (0, 3))
        same_record(new.read(3), old.read(3))
        new.write(record(4))
        assert (new.read(4).error.iterate > 0) == (codec != "native")
    native = store_of(tmp_path / "exact", "native")
    new = RecordStore(tmp_path / "from native", BUDGET, "bfloat16")
    assert all(new.adopt(native.folder, step, native.digests[step]) for step in (0, 3))
    new.write(record(4))
    same_record(new.read(3), record(3))
    assert 0 < new.read(4).error.iterate < 1e-3  # without the difference 0.05


@pytest.mark.parametrize("codec", LOSSY)
def test_what_does_not_agree_with_x_0_is_stored_as_it_is(codec, tmp_path):
    store = store_of(tmp_path, codec, range(2))
    one, tensors = (
        record(2),
        {
            "late": torch.randn(3, 1000),
            "w": torch.randn(70, 301),
            "wide": torch.randn(20_000, dtype=torch.float64),
        },
    )
    one.x.update(tensors)
    one.gradient.raw["late"] = torch.randn(3, 1000)
    store.write(one)
    found = store.read(2)
    for name, value in tensors.items():
        assert torch.equal(found.x[name], value)
    assert not torch.equal(found.gradient.raw["late"], one.gradient.raw["late"])
    assert found.x.keys() == one.x.keys()


@pytest.mark.parametrize("codec", LOSSY)
def test_what_a_codec_cannot_hold_is_stored_as_it_is(codec, tmp_path):
    store, names = (
        RecordStore(tmp_path / "store", BUDGET, codec),
        ("nan", "huge", "half", "whole", "zero"),
    )
    for step in range(3):
        one = record(step)
        one.x["nan"] = torch.full((1000,), float("nan" if step else 1))
        one.x["huge"] = (1.0 + step) * torch.full((1000,), 1e300, dtype=torch.float64)
        one.gradient.raw["huge"] = torch.full((1000,), 1e300, dtype=torch.float64)
        one.x["half"] = torch.full((1000,), 60_000.0 * (-1) ** step, dtype=torch.float16)
        one.x["whole"] = torch.arange(1000) + step
        one.x["zero"] = torch.zeros(1000)
        one.gradient.raw["zero"] = torch.zeros(1000)
        store.write(one)
        found = store.read(step)
        for name in names:
            off = {"half": 500.0 if codec == "int8" else 0.0}.get(name, 0.0)
            x = found.x[name]
            assert torch.allclose(x, one.x[name], rtol=0, atol=off, equal_nan=True), name
        assert torch.equal(found.gradient.raw["huge"], one.gradient.raw["huge"])
        assert torch.equal(found.gradient.raw["zero"], one.gradient.raw["zero"])
        error = found.error
        assert math.isfinite(error.gradient + error.product + error.iterate)


@pytest.mark.parametrize(
    "damage",
    [
        {"codec": "int4"},
        {"codec": "native"},
        {"encoded": "{"},
        {"encoded": json.dumps({"w": {"dtype": "float31", "shape": [3], "difference": True}})},
        {"encoded": json.dumps({"w": {"dtype": "float32", "shape": [9, 9], "difference": True}})},
        {"encoded": json.dumps({"v": {"dtype": "float32", "shape": [3], "difference": False}})},
        {"encoded": json.dumps({"w": 3})},
        {"base": "1"},
        {"base": "77"},
    ],
)
@pytest.mark.parametrize("codec", LOSSY)
def test_a_damaged_header(codec, damage, tmp_path):
    store = store_of(tmp_path, codec, range(3))
    path = store.folder / f"{2:012d}" / "parameters.safetensors"
    with safe_open(path, framework="pt") as file:
        texts = file.metadata()
    save_file(load_file(path), path, {**texts, **damage})
    with pytest.raises(NotMeasurable, match="parameters of step 2 cannot be read"):
        store.read(2)


def test_the_random_numbers_of_x_and_g_are_not_the_same(tmp_path):
    """Else the error of the one would be a guess at that of the other, and their product biased."""
    store = RecordStore(tmp_path / "store", BUDGET, "int8")
    zero, same = {"w": torch.zeros(100_000)}, drawn(3, sizes={"w": (100_000,)})
    store.write(Record(0, 0.0, [freeze(0)], zero, Gradient(zero, 1.0)))
    store.write(Record(1, 0.0, [freeze(1)], same, Gradient(dict(same), 1.0)))
    found = store.read(1)
    one, other = (values["w"] - same["w"] for values in (found.x, found.gradient.raw))
    # each is off by −f or 1 − f of a unit, independently: the mean of the product is 0
    assert abs(float((one * other).sum() / (one.norm() * other.norm()))) < 0.02


def test_a_full_disk_while_x_0_is_written(tmp_path, monkeypatch):
    store, original, broken = (
        RecordStore(tmp_path / "store", BUDGET, "int8"),
        probe_files.write_moments,
        [True],
    )

    def full(*args, **how):
        if broken:
            broken.clear()
            raise OSError(errno.ENOSPC, "No space left on device")
        original(*args, **how)

    monkeypatch.setattr(probe_files, "write_moments", full)
    store.write(record(0))
    store.write(record(1))
    lost, kept = store.take_unwritten()
    store.give_up(lost.record)
    store.write(kept.record)
    store.write(record(2))
    same_record(store.read(1), record(1))
    assert store.read(2).error.iterate > 0


def test_a_record_is_written_again_after_a_full_disk(tmp_path, monkeypatch):
    store, original, broken = (
        RecordStore(tmp_path / "store", BUDGET, "int8"),
        probe_files.write_tensors,
        [True],
    )

    def full(*args, **how):
        if broken:
            broken.clear()
            raise OSError(errno.ENOSPC, "No space left on device")
        original(*args, **how)

    monkeypatch.setattr(probe_files, "write_tensors", full)
    store.write(record(0))
    store.write(record(1))
    for one in store.take_unwritten():
        store.write(one.record)
    same_record(store.read(0), record(0))
    assert store.read(1).error.iterate > 0

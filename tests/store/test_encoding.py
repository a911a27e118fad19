"""Probes through a codec: what comes back, what was measured of it, and x_0, which all of them need."""

import errno
import os
import shutil

import pytest
import torch
from lightning_landscape.store.kept import Kept

from lightning_landscape.recording.freezing import freeze
from lightning_landscape.store.store import ProbeStore
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


def kept(step, dtype=torch.float32, factor=1 / 3, **more):
    """Return the probe of a step: x_k moves away from x_0, parameters without a gradient among it."""
    moved = drawn(100 + step, 0.01 * step, dtype)
    x = {name: value + moved[name] for name, value in drawn(0, dtype=dtype).items()}
    g = drawn(200 + step, 0.1, dtype)
    del g["b"]
    return Kept([freeze({"step": step})], 0.5, x, Gradient(g, factor), None, **more)


def store_of(folder, codec, steps=range(6), **arguments):
    store = ProbeStore(folder / "store", BUDGET, codec)
    for step in steps:
        store.write(step, kept(step, **arguments))
    store.wait()
    assert store.all_is_well
    return store


def by_hand(probe, x, g):
    """Return the three sums, number by number in float64."""
    moved = {name: x[name].double() - value.double() for name, value in probe.parameters.items()}
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
        probe, x, g = kept(step, dtype), store.iterate(step), store.gradient(step)
        assert {name: (t.shape, t.dtype) for name, t in x.items()} == {
            name: (t.shape, t.dtype) for name, t in probe.parameters.items()
        }
        assert set(g.raw) == set(probe.gradient.raw)
        assert g.factor == 1 / 3
        error, expected = store.error(step), by_hand(probe, x, g.raw)
        assert error.gradient == pytest.approx(expected[0], rel=1e-5)
        assert error.product == pytest.approx(expected[1], rel=1e-4, abs=1e-9)
        assert error.iterate == pytest.approx(expected[2], rel=1e-5)
        assert (error.iterate == 0) == (step == 0)
        assert error.iterate <= (0.01 * 0.01 * step) ** 2 * sum(
            t.numel() for t in probe.parameters.values()
        )
        assert store.holds_exactly(step) == (step == 0)
    assert all(
        torch.equal(value, kept(0, dtype).parameters[name])
        for name, value in store.iterate(0).items()
    )


def test_shares_of_sharded_parameters(tmp_path):
    whole = store_of(tmp_path / "whole", "int8").error(3)
    store = ProbeStore(tmp_path / "store", BUDGET, "int8")
    store.encoder.shares = dict.fromkeys(SIZES, 0.25)
    store.write(0, kept(0))
    store.write(3, kept(3))
    error = store.error(3)
    assert (4 * error.gradient, 4 * error.product, 4 * error.iterate) == pytest.approx(
        (whole.gradient, whole.product, whole.iterate)
    )


@pytest.mark.parametrize("codec", ["native", *LOSSY])
def test_the_sizes_that_are_said_before_are_those_on_disk(codec, tmp_path):
    store = ProbeStore(tmp_path / "store", BUDGET, codec)
    probe = kept(1)
    store.note_size(probe)
    expected, once = store.largest, store.encoder.base_bytes(probe.parameters)
    assert store.capacity == (BUDGET - once) // expected
    store.write(1, probe)
    store.wait()
    parts = {
        path.name: path.stat().st_size
        for path in (tmp_path / "store").rglob("*.*")
        if path.is_file()
    }
    headers = 3000
    own = sum(size for name, size in parts.items() if not name.startswith("base"))
    assert 0 <= own - expected < headers
    assert 0 <= parts.get("base-0.safetensors", 0) - once < headers
    assert (once > 0) == (codec != "native")
    elements = sum(value.numel() for value in probe.parameters.values())
    per_element = {"native": 8, "bfloat16": 4, "int8": 2 * (1 + 4 / 128)}[codec]
    assert expected == pytest.approx(elements * per_element, rel=0.01)
    # what the same codec takes of 160 million parameters
    scale = 160e6 / elements
    fits = 16 * expected * scale + once * scale < 6 * 2**30
    assert fits == (codec == "int8")


@pytest.mark.parametrize("codec", LOSSY)
def test_x_0_outlives_its_probe(codec, tmp_path):
    store = store_of(tmp_path, codec)
    before = store.iterate(4)
    for step in (0, 1, 2, 3):
        store.drop(step)
    (tmp_path / "store" / "base-0.safetensors").unlink()
    assert all(torch.equal(value, before[name]) for name, value in store.iterate(4).items())
    store.write(6, kept(6))
    assert store.error(6).iterate > 0


def no_links(*args):
    raise OSError(errno.EXDEV, "Invalid cross-device link")


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("codec", LOSSY)
def test_who_resumes_goes_on_from_the_same_x_0(codec, links, tmp_path, monkeypatch):
    old, whole = store_of(tmp_path / "old", codec), store_of(tmp_path / "whole", codec, range(7))
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    new = ProbeStore(tmp_path / "new" / "store", BUDGET, codec)
    assert all(new.adopt(old.folder, step, old.digests[step]) for step in (2, 4))
    shutil.rmtree(old.folder)
    new.write(6, kept(6))
    for step in (2, 4, 6):
        expected = whole.iterate(step)
        assert all(torch.equal(value, expected[name]) for name, value in new.iterate(step).items())
        assert new.error(step) == whole.error(step)
    bases = {path.stat().st_ino for path in new.folder.rglob("base-0.safetensors")}
    assert len(bases) == 1 or not links
    assert not list(new.folder.rglob("base-1.safetensors"))


def test_a_run_with_another_codec_reads_what_it_takes_over(tmp_path):
    old = store_of(tmp_path / "old", "int8")
    for codec in ("native", "bfloat16"):
        new = ProbeStore(tmp_path / codec / "store", BUDGET, codec)
        assert new.adopt(old.folder, 3, old.digests[3])
        assert all(
            torch.equal(value, old.iterate(3)[name]) for name, value in new.iterate(3).items()
        )
        new.write(4, kept(4))
        assert (new.error(4).iterate > 0) == (codec != "native")


@pytest.mark.parametrize("codec", LOSSY)
def test_parameters_that_join_later_have_a_base_of_their_own(codec, tmp_path):
    store = store_of(tmp_path, codec, range(2))
    late = drawn(7, sizes={"late": (3, 1000)})
    probes = {step: kept(step) for step in (2, 3)}
    for step, probe in probes.items():
        probe.parameters["late"] = late["late"] + 0.01 * (step - 2)
        store.write(step, probe)
    assert torch.equal(store.iterate(2)["late"], late["late"])
    assert (store.iterate(3)["late"] - late["late"] - 0.01).abs().max() < 1e-3
    assert "late" not in store.iterate(1)
    assert sorted(path.name for path in store.folder.glob("base*")) == [
        "base-0.safetensors",
        "base-1.safetensors",
    ]
    assert not (store.folder / f"{1:012d}" / "base-1.safetensors").exists()
    new = ProbeStore(tmp_path / "new", BUDGET, codec)
    assert all(new.adopt(store.folder, step, store.digests[step]) for step in (1, 3))
    assert torch.equal(new.iterate(3)["late"], store.iterate(3)["late"])


@pytest.mark.parametrize("codec", LOSSY)
def test_what_a_codec_cannot_hold_is_stored_as_it_is(codec, tmp_path):
    store = ProbeStore(tmp_path / "store", BUDGET, codec)
    for step in range(3):
        probe = kept(step)
        probe.parameters["nan"] = torch.full((1000,), float("nan" if step else 1))
        probe.parameters["huge"] = (1.0 + step) * torch.full((1000,), 1e300, dtype=torch.float64)
        probe.gradient.raw["huge"] = torch.full((1000,), 1e300, dtype=torch.float64)
        probe.parameters["half"] = torch.full((1000,), 60_000.0 * (-1) ** step, dtype=torch.float16)
        probe.parameters["whole"] = torch.arange(1000) + step
        probe.parameters["zero"] = torch.zeros(1000)
        probe.gradient.raw["zero"] = torch.zeros(1000)
        store.write(step, probe)
        found, g = store.iterate(step), store.gradient(step).raw
        for name in ("nan", "huge", "half", "whole", "zero"):
            tolerance = {"half": 500.0 if codec == "int8" else 0.0}.get(name, 0.0)
            assert torch.allclose(
                found[name], probe.parameters[name], rtol=0, atol=tolerance, equal_nan=True
            ), name
        assert torch.equal(g["huge"], probe.gradient.raw["huge"])
        assert torch.equal(g["zero"], probe.gradient.raw["zero"])


@pytest.mark.parametrize("codec", ["native", *LOSSY])
def test_who_has_a_gradient_is_known_without_reading_it(codec, tmp_path):
    store = store_of(tmp_path, codec)
    names = store.gradient_names(3)
    assert len(names) == len(set(names))
    assert set(names) == set(kept(3).gradient.raw)
    next((tmp_path / "store").glob("*03/gradient.safetensors")).unlink()
    with pytest.raises(NotMeasurable, match="gradient of step 3 is gone"):
        store.gradient_names(3)


@pytest.mark.parametrize("codec", LOSSY)
def test_some_probes_are_there_as_they_were(codec, tmp_path):
    store = store_of(tmp_path, codec, (0, 1, 2, 4, 8), natively=True)
    assert [step for step in store.digests if store.holds_natively(step)] == [0, 4, 8]
    for step in (0, 4, 8):
        probe = kept(step)
        x, g = store.iterate(step, exactly=True), store.gradient(step, exactly=True)
        assert all(torch.equal(value, probe.parameters[name]) for name, value in x.items())
        assert all(torch.equal(value, probe.gradient.raw[name]) for name, value in g.raw.items())
        assert store.holds_exactly(step)
        assert store.holds_gradient_exactly(step)
        assert step == 0 or not torch.equal(store.iterate(step)["w"], x["w"])
    new = ProbeStore(tmp_path / "new", BUDGET, codec)
    assert all(new.adopt(store.folder, step, store.digests[step]) for step in (0, 4, 8))
    new.write(16, kept(16, natively=True))
    assert [step for step in new.digests if new.holds_natively(step)] == [0, 8, 16]
    assert store.holds_natively(4)


def test_where_there_is_little_room_none_is(tmp_path):
    store = ProbeStore(tmp_path / "store", 10 * kept(0).nbytes, "int8")
    for step in range(3):
        store.write(step, kept(step, natively=True))
    assert not any(store.holds_natively(step) for step in range(3))
    assert [step for step in range(3) if store.holds_exactly(step)] == [0]
    assert not store.holds_gradient_exactly(0)


def test_the_random_numbers_of_x_and_g_are_not_the_same(tmp_path):
    """Else the error of the one would be a guess at that of the other, and their product biased."""
    store = ProbeStore(tmp_path / "store", BUDGET, "int8")
    store.write(
        0,
        Kept(
            [freeze(0)],
            0.0,
            {"w": torch.zeros(100_000)},
            Gradient({"w": torch.zeros(100_000)}, 1.0),
        ),
    )
    same = drawn(3, sizes={"w": (100_000,)})
    store.write(1, Kept([freeze(1)], 0.0, same, Gradient(dict(same), 1.0)))
    of_x, of_g = store.iterate(1)["w"] - same["w"], store.gradient(1).raw["w"] - same["w"]
    # of one value both are off by −f or 1 − f of a unit, independently: the mean of the product is 0
    assert abs(float((of_x * of_g).sum() / (of_x.norm() * of_g.norm()))) < 0.02


def test_a_full_disk_in_the_middle_of_x_0(tmp_path, monkeypatch):
    from lightning_landscape.store import encoding

    store, original, broken = (
        ProbeStore(tmp_path / "store", BUDGET, "int8"),
        encoding.save_tensors,
        [True],
    )

    def full(path, tensors, **how):
        if broken and path.name == "base-0.safetensors":
            broken.clear()
            raise OSError(errno.ENOSPC, "No space left on device")
        original(path, tensors, **how)

    monkeypatch.setattr(encoding, "save_tensors", full)
    store.write(0, kept(0))
    store.write(1, kept(1))
    for one in store.take_unwritten():
        store.write(one.step, one.kept)
    assert torch.equal(store.iterate(0)["w"], kept(0).parameters["w"])
    assert store.error(1).iterate > 0

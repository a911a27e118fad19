"""Codecs against a recomputation number by number; int8 is unbiased."""

import math
import random

import pytest
import torch

from lightning_landscape.store.codecs import (
    BLOCK,
    CODECS,
    bytes_of_probe,
    bytes_of_start,
    decoded,
    encoded,
)

LOSSY = {name: codec for name, codec in CODECS.items() if codec is not None}


def through(codec, values, base=None, seed="seed"):
    planes = encoded(codec, values, base, seed)
    return decoded(codec, planes, values.dtype, values.shape, base), planes


def drawn(shape, seed=0, dtype=torch.float32):
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "shape",
    [(), (1,), (0,), (127,), (128,), (129,), (3, 5, 7), (BLOCK,), (BLOCK + 1,), (3 * BLOCK - 57,)],
)
def test_shape_dtype_and_size(name, dtype, shape):
    codec, values = LOSSY[name], drawn(shape, dtype=dtype)
    found, planes = through(codec, values)
    assert (found.shape, found.dtype) == (values.shape, values.dtype)
    assert {plane: (len(tensor), tensor.dtype) for plane, tensor in planes.items()} == {
        plane: (math.ceil(values.numel() / group), kind)
        for plane, (group, kind) in codec.planes.items()
    }
    if codec.shrinks(values):
        assert (
            codec.nbytes(values) == sum(tensor.nbytes for tensor in planes.values()) < values.nbytes
        )
    else:
        assert codec.nbytes(values) == values.nbytes


def test_bfloat16_is_the_nearest_one():
    values = drawn((2 * BLOCK + 3,))
    found, _ = through(LOSSY["bfloat16"], values)
    assert torch.equal(found, values.bfloat16().float())
    assert (found - values).norm() <= 2**-8 * values.norm()


def by_hand(values, planes):
    """Return the distance of each value to its code in units of the scale, number by number."""
    off = []
    for index, value in enumerate(values.reshape(-1).tolist()):
        scale, code = float(planes["scales"][index // 128]), int(planes["codes"][index])
        off.append((code - value / scale) if scale else value)
    return off


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_int8_rounds_up_or_down_and_the_scale_holds_the_largest(dtype):
    values = drawn((BLOCK + 300,), dtype=dtype) * torch.logspace(-30, 30, BLOCK + 300, dtype=dtype)
    values[500:800] = 0
    found, planes = through(LOSSY["int8"], values)
    assert all(abs(off) < 1 + 1e-4 for off in by_hand(values, planes))
    for group, scale in enumerate(planes["scales"].tolist()):
        largest = float(values[128 * group : 128 * (group + 1)].abs().max())
        assert largest / 127 <= scale <= largest / 127 * (1 + 1e-6)
    scales = planes["scales"].to(dtype).repeat_interleave(128)[: len(values)]
    assert torch.equal(found, planes["codes"].to(dtype) * scales)
    assert not found[512:768].any()


@pytest.mark.parametrize("size", [1.0, 1e-30, 1e30, 2.0**-149])
def test_int8_is_unbiased(size):
    """Of the largest and of denormal numbers, too, the mean over draws is the value."""
    shares = torch.tensor(
        [0.0, 0.25, 0.3, 0.9, 1.0, -0.1, -0.75, 1e-3] * 25
    )  # 200: the second group is not whole
    values = (shares * 127 * (1 if size == 2.0**-149 else size)).mul(
        1 if size != 2.0**-149 else size
    )
    draws, codec = 4000, LOSSY["int8"]
    total = torch.zeros(len(values), dtype=torch.float64)
    for number in range(draws):
        total += through(codec, values, seed=str(number))[0].double()
    scale = float(encoded(codec, values, None, "")["scales"][0])
    off = (total / draws - values.double()) / scale
    assert off.abs().max() < 5 * 0.5 / math.sqrt(draws)
    assert off.mean().abs() < 5 * 0.5 / math.sqrt(draws * len(values))


def test_draws_are_its_own_and_those_of_its_seed():
    before = (torch.get_rng_state(), random.getstate())
    values, codec = drawn((1000,)), LOSSY["int8"]
    one, again, other = (encoded(codec, values, None, seed)["codes"] for seed in ("a", "a", "b"))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


@pytest.mark.parametrize("name", LOSSY)
def test_of_a_difference_the_base_itself_comes_back(name):
    base = drawn((500,), 1)
    assert torch.equal(through(LOSSY[name], base, base)[0], base)
    near = base + 1e-4 * drawn((500,), 2)
    found, _ = through(LOSSY[name], near, base)
    assert (found - near).norm() <= 0.02 * (near - base).norm()
    assert (found - near).norm() < 0.1 * (through(LOSSY[name], near)[0] - near).norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_is_small_already(dtype):
    values = drawn((1000,), dtype=dtype)
    assert not LOSSY["bfloat16"].shrinks(values)
    found, planes = through(LOSSY["int8"], values)
    assert found.dtype == dtype
    assert (found.float() - values.float()).abs().max() <= 1.01 * planes["scales"].max()


@pytest.mark.parametrize(
    "values", [torch.arange(1000), torch.ones(1000, dtype=torch.complex64), torch.ones(1000).bool()]
)
def test_what_is_not_floating_is_left_alone(values):
    assert not any(codec.shrinks(values) for codec in LOSSY.values())
    assert all(codec.nbytes(values) == values.nbytes for codec in LOSSY.values())


def test_160_million_parameters_fit_16_probes_in_6_gib():
    x = {"x": torch.empty(160_000_000, device="meta")}
    assert bytes_of_probe(x, "int8") * 16 + bytes_of_start(x, "int8") < 6 * 2**30
    assert bytes_of_probe(x, "native") * 16 > 18 * 2**30
    assert bytes_of_start(x, "native") == 0


def test_blocks_are_whole_groups_and_below_the_grain_of_torch():
    groups = [group for codec in LOSSY.values() for group, _ in codec.planes.values()]
    assert all(BLOCK % group == 0 for group in groups)
    assert BLOCK < 1 << 15

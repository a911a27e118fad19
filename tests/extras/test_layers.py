"""The curves of the parts of a module."""

import math

import pytest

from lightning_landscape import Layers
from lightning_landscape.extras.layers import LayerRow, layers_of


def test_curves_are_product_cosine_and_distance_of_each_part():
    rows = [LayerRow(3, 3, "net.0", 0.5, 4.0, 1.0), LayerRow(3, 3, "net.2", -1.0, 0.0, 9.0)]
    found = Layers().curves(rows)
    assert set(found) == {
        f"layers/{part}/{value}"
        for part in ("net.0", "net.2")
        for value in ("inner_product", "cosine", "distance")
    }
    assert found["layers/net.0/inner_product"] == 0.5
    assert found["layers/net.0/cosine"] == pytest.approx(0.25)
    assert found["layers/net.2/distance"] == 3.0
    assert math.isnan(found["layers/net.2/cosine"])  # a gradient of 0 has no angle


def test_no_parameter_is_in_two_parts():
    names = ["a.b.weight", "a.b.bias", "a.c.0.weight", "scale"]
    groups = layers_of(names)
    assert sorted(name for group in groups.values() for name in group) == sorted(names)
    assert layers_of([]) == {}

"""Which parts of a module contribute what to a probe's inner product, squared gradient norm and squared distance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from lightning_landscape.probes import Probe
from lightning_landscape.records import LayerRow
from lightning_landscape.vectors.gradients import Gradient
from lightning_landscape.vectors.products import Products


def layers_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Group parameter names by the topmost submodules that divide them; a parameter in none is a group of its own.

    Example:
        >>> layers_of(["net.0.weight", "net.0.bias", "net.2.weight"])  # all are in `net`, which divides nothing
        {'net.0': ['net.0.weight', 'net.0.bias'], 'net.2': ['net.2.weight']}
        >>> layers_of(["encoder.weight", "scale"])
        {'encoder': ['encoder.weight'], 'scale': ['scale']}
    """
    paths = {name: name.split(".") for name in names}
    shared = 0  # leading parts that all names have in common, their last parts, the parameters' own names, aside
    while (
        paths
        and all(len(path) > shared + 1 for path in paths.values())
        and len({p[shared] for p in paths.values()}) == 1
    ):
        shared += 1
    groups: dict[str, list[str]] = {}
    for name, path in paths.items():
        groups.setdefault(".".join(path[: shared + 1]), []).append(name)
    return groups


def layer_rows(
    probe: Probe,
    here: Mapping[str, Tensor],
    there: Mapping[str, Tensor],
    gradient: Gradient,
    products: Products,
) -> list[LayerRow]:
    """Return what each part contributes to a probe, in the order of the module's parameters.

    Args:
        probe: the probe.
        here: x_k by name.
        there: x_p by name.
        gradient: g_k.
        products: measures inner products.
    """
    rows = []
    for layer, names in layers_of(here).items():
        raw = {name: gradient.raw[name] for name in names if name in gradient.raw}
        part = {name: here[name] for name in names}
        product, distance = products.inner_product_and_distance(part, there, raw, gradient.factor)
        squares = products.sq_change(raw, gradient.factor, {}, 1.0)
        rows.append(LayerRow(probe.step, probe.logged_step, layer, product, squares, distance))
    return rows

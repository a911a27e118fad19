"""`Layers`: the parts of a module in a probe's inner product, gradient norm and distance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from typing_extensions import override

from lightning_landscape.evaluation.extra import Extra

if TYPE_CHECKING:
    from lightning_landscape.evaluation.probed_step import ProbedStep


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One part of the module at one probe, of ``layers.csv``.

    Over the parts of a probe, each column sums to the column of the probe.
    """

    step: int
    logged_step: int
    layer: str
    """Name of the submodule, or of a parameter that is in none"""
    inner_product: float
    """<g_k, x_k − x_p> of this part's parameters"""
    grad_sq_norm: float
    sq_distance: float


class Layers(Extra):
    """Tells the parts of the module apart: which of them point away from the reference.

    Curves ``layers/<part>/…``. It evaluates no loss.
    """

    tables = {"layers": LayerRow}

    @override
    def at(self, step: ProbedStep) -> Iterable[LayerRow]:
        record, probe, evaluator = step.record, step.probe, step.evaluator
        if not step.training.measures or record.gradient is None:
            return []
        here, gradient = evaluator.for_names(record, step.reference), record.gradient
        products, rows = step.training.products, []
        for layer, names in layers_of(here).items():
            raw = {name: gradient.raw[name] for name in names if name in gradient.raw}
            part = {name: here[name] for name in names}
            measure = products.inner_product_and_distance
            product, distance = measure(part, step.reference, raw, gradient.factor)
            squares = products.sq_change(raw, gradient.factor, {}, 1.0)
            rows.append(LayerRow(probe.step, probe.logged_step, layer, product, squares, distance))
        return rows

    @override
    def curves(self, rows: Sequence[LayerRow]) -> dict[str, float]:
        values = {}
        for row in rows:
            size = math.sqrt(row.grad_sq_norm * row.sq_distance)
            values[f"layers/{row.layer}/inner_product"] = row.inner_product
            cosine = row.inner_product / size if size > 0 else math.nan
            values[f"layers/{row.layer}/cosine"] = cosine
            values[f"layers/{row.layer}/distance"] = math.sqrt(row.sq_distance)
        return values


def layers_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Group parameter names by the topmost submodules that divide them.

    A parameter in no submodule is a group of its own.

    Example:
        >>> layers_of(["net.0.weight", "net.0.bias", "net.2.weight"])  # `net` divides nothing
        {'net.0': ['net.0.weight', 'net.0.bias'], 'net.2': ['net.2.weight']}
        >>> layers_of(["encoder.weight", "scale"])
        {'encoder': ['encoder.weight'], 'scale': ['scale']}
    """
    paths = {name: name.split(".") for name in names}
    shared = 0
    """Number of leading parts that all names share; the last part is the parameter's own name"""
    while (
        paths
        and all(len(path) > shared + 1 for path in paths.values())
        and len({path[shared] for path in paths.values()}) == 1
    ):
        shared += 1
    groups: dict[str, list[str]] = {}
    for name, path in paths.items():
        groups.setdefault(".".join(path[: shared + 1]), []).append(name)
    return groups

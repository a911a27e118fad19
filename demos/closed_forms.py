"""Pictures of the paper's examples in two dimensions: feasible pairs, a run of SGD, its bound.

python demos/closed_forms.py                     writes runs/closed_forms.png, prints constants

Each example is f = (f_1 + f_2)/2 on the plane (Islamov et al. 2024, Examples 1, 2, 3 and 6). The
functions have saddles and local minima. Yet they satisfy the α-β-condition, because its constants
depend on the disagreement of the two losses at the minimizers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import grad, vmap

from lightning_landscape.bounds.functional import sgd_sharp
from lightning_landscape.functional import alpha_beta_margin

D = torch.float64
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"
Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Example:
    """Two losses on the plane with their minimizers and constants."""

    title: str
    losses: tuple[Loss, Loss]
    infima: tuple[float, float]
    starts: Sequence[float]
    """Points near the minimizers (t, t) of f; a single negative one means the line x + y = 2t"""
    smoothness: float
    rate: float
    beta: float
    """β of a pair (δ = rate, β) that holds everywhere: the supremum over the plane, rounded up"""
    start: tuple[float, float]
    square: tuple[float, float]
    """Ends of both axes in the picture"""

    def f(self, point: Tensor) -> Tensor:
        """Return f at a point."""
        return (self.losses[0](point) + self.losses[1](point)) / 2

    @cached_property
    def minimisers(self) -> Tensor:
        """Return the minimizers (t, t) by Newton's method, shape (m, 2)."""

        def along(t: Tensor) -> Tensor:
            return self.f(torch.stack([t, t]))

        roots = []
        for start in self.starts:
            t = torch.tensor(start, dtype=D)
            for _ in range(50):
                t = t - grad(along)(t) / grad(grad(along))(t)
            roots.append(torch.stack([t, t]))
        return torch.stack(roots)

    def nearest(self, points: Tensor) -> Tensor:
        """Return the minimizer nearest to each point."""
        if self.starts[0] < 0:  # the minimizers are a line
            return points - (points.sum(1, keepdim=True) + 0.5) / 2
        ends = self.minimisers
        return ends[torch.cdist(points, ends).argmin(1)]

    def table(self, points: Tensor) -> dict[str, Tensor]:
        """Return the columns of all points for both losses; x_p is the nearest minimizer."""
        reference = self.nearest(points)
        rows = []
        for f, low in zip(self.losses, self.infima, strict=True):
            product = (vmap(grad(f))(points) * (points - reference)).sum(1)
            rows.append(
                (vmap(f)(points), vmap(f)(reference), product, torch.full_like(product, low))
            )
        names = ("loss", "reference_loss", "inner_product", "loss_infimum")
        return dict(zip(names, map(torch.cat, zip(*rows, strict=True)), strict=True))

    def interpolation_error(self) -> float:
        """Return σ² = f* − (f_1* + f_2*)/2."""
        there = self.minimisers[0]
        return float(self.f(there)) - sum(self.infima) / 2

    def neighbourhood(self) -> float:
        """Return β σ²/δ of the pair."""
        return self.beta * self.interpolation_error() / self.rate


def bump(point: Tensor) -> Tensor:
    return 1 - torch.exp(-point.square().sum())


def well(point: Tensor) -> Tensor:
    return point.square().sum() / (1 + point.square().sum())


EXAMPLES = {
    "1": Example(
        "1: a valley of minimisers",
        (
            lambda p: p.sum().square() / (p.sum().square() + 1),
            lambda p: (p.sum() + 1).square() / ((p.sum() + 1).square() + 1),
        ),
        (0.0, 0.0),
        [-0.25],
        smoothness=4.0,
        rate=0.5,
        beta=2.0,
        start=(2.0, 1.0),
        square=(-3, 3),
    ),
    "2": Example(
        "2: two wells and a saddle",
        (bump, lambda p: bump(p - 2)),
        (0.0, 0.0),
        [0.0, 2.0],
        smoothness=2.0,
        rate=8.0,
        beta=8.8e6,
        start=(0.6, -0.4),
        square=(-1.5, 3.5),
    ),
    "3": Example(
        "3: a local minimum",
        (lambda p: (1 + p.square().sum()) / (4 + p.square().sum()), lambda p: well(p - 2.5)),
        (0.25, 0.0),
        [2.47],
        smoothness=2.0,
        rate=1.0,
        beta=625.3,
        start=(1.0, 0.5),
        square=(-2, 4.5),
    ),
    "6": Example(
        "6: two wells that overlap",
        (well, lambda p: well(p - 1)),
        (0.0, 0.0),
        [0.159, 0.841],
        smoothness=2.0,
        rate=1.0,
        beta=19.686,
        start=(1.5, -0.5),
        square=(-2, 3),
    ),
}


def square(ends: tuple[float, float], count: int) -> Tensor:
    """Return the points of a grid, shape (count², 2)."""
    line = torch.linspace(*ends, count, dtype=D)
    return torch.cartesian_prod(line, line)


def smallest_beta(example: Example, rates: Tensor, points: Tensor) -> Tensor:
    """Return β_min at each rate over many points, in float64: the exact envelope would be slow."""
    columns = example.table(points)
    excess = columns["reference_loss"] - columns["loss_infimum"]
    rise = columns["loss"] - columns["reference_loss"]
    return torch.stack(
        [((rate * rise - columns["inner_product"]) / excess).max().clamp(min=0) for rate in rates]
    )


def simulate(example: Example, step_size: float, steps: int, seeds: int = 400) -> Tensor:
    """Return the mean over seeds of f(x_k) − f* along SGD, shape (steps,)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.tensor(example.start, dtype=D).expand(seeds, 2).clone()
    lowest, gaps = float(example.f(example.minimisers[0])), []
    gradients = [vmap(grad(loss)) for loss in example.losses]
    for _ in range(steps):
        gaps.append(vmap(example.f)(x).mean() - lowest)
        second = torch.randint(2, (seeds, 1), generator=generator).to(D)
        x = x - step_size * ((1 - second) * gradients[0](x) + second * gradients[1](x))
    return torch.stack(gaps)


def draw_landscape(axes: Axes, example: Example) -> None:
    """Draw f with its minimizers."""
    line = torch.linspace(*example.square, 161)
    values = vmap(example.f)(square(example.square, 161)).reshape(161, 161).T
    axes.contourf(line, line, values, levels=20, cmap="cividis")
    if example.starts[0] < 0:
        axes.axline((-0.25, -0.25), slope=-1, color="white", linewidth=1.5, label="minimisers")
    else:
        axes.plot(
            *example.minimisers.T,
            "*",
            color="white",
            markeredgecolor="black",
            markersize=11,
            label="minimisers",
        )
    axes.plot(*example.start, "o", color=ORANGE, label="start of SGD")
    axes.set(title=example.title, xlim=example.square, ylim=example.square, aspect="equal")
    axes.legend(fontsize="x-small", loc="upper left")


def draw_pairs(axes: Axes, example: Example) -> None:
    """Draw the pairs that hold everywhere."""
    rates = torch.linspace(0.02, 2, 60, dtype=D) * example.rate
    wide = square((-60, 60), 1201) if example.starts[0] >= 0 else square((-400, 400), 801)
    betas = smallest_beta(example, rates, wide)
    top = 1.1 * float(betas.max())
    axes.plot(rates, betas, color=BLUE, label="β_min(δ)")
    axes.fill_between(rates, betas, top, color=BLUE, alpha=0.15, label="holds everywhere")
    axes.plot([example.rate], [example.beta], "o", color=ORANGE, label="the pair of the bound")
    axes.set(xlabel="δ = α − β", ylabel="β", xlim=(0, float(rates[-1])), ylim=(0, top))
    axes.legend(fontsize="x-small", loc="upper left")


def draw_run(axes: Axes, example: Example, steps: int) -> None:
    """Draw the best iterate of SGD and its bound."""
    step_size, start = (
        0.1 * example.rate / example.smoothness,
        torch.tensor([example.start], dtype=D),
    )
    gaps, counts = simulate(example, step_size, steps), torch.arange(1, steps + 1)
    known = {
        "step_size": step_size,
        "alpha": example.rate + example.beta,
        "beta": example.beta,
        "smoothness": example.smoothness,
        "sq_distance": float((start - example.nearest(start)).square().sum()),
        "interpolation_error": example.interpolation_error(),
    }
    bounds = [float(sgd_sharp(steps=int(k), **known)) for k in counts]
    axes.plot(
        counts, gaps.cummin(0).values, color=BLUE, label="SGD, best iterate, mean of 400 runs"
    )
    axes.plot(counts, bounds, color=ORANGE, label="its bound")
    axes.axhline(example.neighbourhood(), color=GREY, linestyle=":", label="β σ²/δ")
    axes.axhline(
        float(gaps[0]), color=GREY, linewidth=0.8, label="the start: above it a bound is vacuous"
    )
    axes.set(xscale="log", yscale="log", xlabel="steps K", ylabel="f − f*", ylim=(1e-4, None))


def draw(path: Path, steps: int = 300) -> None:
    """Draw landscape, feasible pairs, and run with bound of each example."""
    figure = Figure(figsize=(13, 9), layout="constrained")
    for column, example in enumerate(EXAMPLES.values()):
        top, middle, bottom = (figure.add_subplot(3, 4, 4 * row + column + 1) for row in range(3))
        draw_landscape(top, example)
        draw_pairs(middle, example)
        draw_run(bottom, example, steps)
    figure.legend(
        *bottom.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def tell(example: Example) -> None:
    """Print the constants of an example."""
    points = square(example.square, 401)
    margin = alpha_beta_margin(example.rate + example.beta, example.beta, **example.table(points))
    start = float(
        example.f(torch.tensor(example.start, dtype=D)) - example.f(example.minimisers[0])
    )
    print(f"Example {example.title}")
    print(
        f"  δ = {example.rate:g} holds with β = {example.beta:g}, with a margin of "
        f"{float(margin.min()):.3g} or more"
    )
    print(
        f"  σ² = {example.interpolation_error():.4g}, β σ²/δ = {example.neighbourhood():.4g}, "
        f"start {start:.4g} above f*"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/closed_forms.png"))
    path = parser.parse_args().out
    for example in EXAMPLES.values():
        tell(example)
    draw(path)
    print(f"picture: {path}")


if __name__ == "__main__":
    main()

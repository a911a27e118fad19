"""Finite sums with known α, β, L, l_i and minimizers, to simulate every theorem on."""

from dataclasses import dataclass, field

import torch
from torch.func import grad, vmap

from demos.closed_forms import EXAMPLES

D = torch.float64


@dataclass
class Problem:
    """f = mean of f_i on R^d; points are rows."""

    losses: object
    """(points, i) → f_i(x), one value a row"""
    gradients: object
    count: int
    smoothness: float
    infima: torch.Tensor
    nearest: object
    """points → the nearest minimizer of each"""
    pairs: list
    """(α, β) for which the α-β-condition holds at every point"""
    start: torch.Tensor
    scale: float = 1.0
    sigma_sq: float = field(init=False)
    f_star: float = field(init=False)

    def __post_init__(self):
        there = self.nearest(self.start.unsqueeze(0))
        values = torch.stack([self.losses(there, torch.tensor([i]))[0] for i in range(self.count)])
        self.f_star = float(values.mean())
        self.sigma_sq = float((values - self.infima).mean())
        self.positivity = float(self.infima.mean())

    def full(self, points):
        """Return f at each point."""
        every = [self.losses(points, torch.full((len(points),), i)) for i in range(self.count)]
        return torch.stack(every).mean(0)

    def sq_distance(self, points):
        """Return the squared distance of each point to the minimizers."""
        return (points - self.nearest(points)).square().sum(1)


def least_squares():
    generator = torch.Generator().manual_seed(0)
    a, y = (
        torch.randn(12, 3, generator=generator, dtype=D),
        torch.randn(12, generator=generator, dtype=D),
    )
    solution = torch.linalg.lstsq(a, y.unsqueeze(1)).solution.squeeze(1)

    def losses(x, i):
        return 0.5 * ((x * a[i]).sum(1) - y[i]).square()

    def gradients(x, i):
        return ((x * a[i]).sum(1) - y[i]).unsqueeze(1) * a[i]

    smoothness = float(a.square().sum(1).max())
    rates = (0.5, 1.0, 1.5)
    pairs = [(d + (1 - d) ** 2 / (2 - d), (1 - d) ** 2 / (2 - d)) for d in rates]
    start = solution + torch.tensor([2.0, -1.0, 1.0], dtype=D)
    return Problem(
        losses,
        gradients,
        12,
        smoothness,
        torch.zeros(12, dtype=D),
        solution.expand_as,
        pairs,
        start,
    )


def logistic_regression():
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(10, 2, generator=generator, dtype=D) + 0.5
    label = (torch.rand(10, generator=generator) < 0.7).to(D) * 2 - 1
    strength = 0.1

    def losses(x, i):
        return torch.nn.functional.softplus(
            -label[i] * (x * a[i]).sum(1)
        ) + strength / 2 * x.square().sum(1)

    def gradients(x, i):
        sigmoid = torch.sigmoid(-label[i] * (x * a[i]).sum(1))
        return (-label[i] * sigmoid).unsqueeze(1) * a[i] + strength * x

    x = torch.zeros(1, 2, dtype=D)
    for _ in range(3_000):  # each step shrinks at least by the factor 1 − 0.2 · strength
        x = x - 0.2 * gradients(x.expand(10, -1), torch.arange(10)).mean(0, keepdim=True)
    solution = x[0]
    infima = []
    for i in range(10):  # the minimizer of one sample's loss is a multiple of a_i
        t, norm = torch.zeros((), dtype=D), a[i].norm()
        for _ in range(200):
            slope = -norm * torch.sigmoid(-t * norm) + strength * t
            t = t - slope / (norm**2 / 4 + strength)
        infima.append(torch.nn.functional.softplus(-t * norm) + strength / 2 * t**2)
    smoothness = float(a.square().sum(1).max()) / 4 + strength
    start = solution + torch.tensor([3.0, -2.0], dtype=D)
    # convex: <∇f_i, x − x_p> ≥ f_i(x) − f_i(x_p)
    return Problem(
        losses,
        gradients,
        10,
        smoothness,
        torch.stack(infima) - 1e-12,
        solution.expand_as,
        [(1.0, 0.0)],
        start,
    )


def example(name, pairs):
    known = EXAMPLES[name]

    def pick(each, x, i):
        both = torch.stack([vmap(f)(x) for f in each])
        return both[i, torch.arange(len(x))]

    return Problem(
        losses=lambda x, i: pick(known.losses, x, i),
        gradients=lambda x, i: pick([grad(f) for f in known.losses], x, i),
        count=2,
        smoothness=known.smoothness,
        infima=torch.tensor(known.infima, dtype=D),
        nearest=known.nearest,
        pairs=pairs,
        start=torch.tensor(known.start, dtype=D),
    )


# β is the supremum of β_min over the plane, rounded up. L bounds the Hessians: 2‖(1,1)‖² in
# example 1, 2 in the others.
PROBLEMS = {
    "least_squares": least_squares,
    "logistic_regression": logistic_regression,
    "example_1": lambda: example("1", [(0.25 + 1.0, 1.0), (0.5 + 2.0, 2.0), (1.0 + 4.0, 4.0)]),
    "example_2": lambda: example("2", [(8 + 8.8e6, 8.8e6)]),
    "example_3": lambda: example("3", [(1 + 625.3, 625.3)]),
    "example_6": lambda: example("6", [(1 + 19.686, 19.686)]),
}

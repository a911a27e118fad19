"""What measuring costs at least on this machine: memory bandwidth, a forward pass, copies of the parameters.

python -m benchmarks.floors            the share of this machine's memory bandwidth at which inner products are taken

`overhead.py` sets the rest beside its costs: what no implementation can do without, timed in the middle of the same training.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_landscape.vectors.products import Products

SHAPES = {"large": (3000, 3000), "wide": (3000, 784), "bias": (3000,)}
"""Of parameters of 11 million elements: an MLP 784-3000-3000-10 without its last layer"""


def seconds(call: Callable[[], Any]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class Floor(pl.Callback):
    """Times, after the first of every few steps, a forward pass without gradients, and a copy of all parameters and gradients.

    Args:
        period: steps from one time to the next.
    """

    def __init__(self, period: int) -> None:
        self._period = period
        self._place: list[Tensor] = []
        self.forward: list[float] = []
        """Seconds of a forward pass"""
        self.copies: list[float] = []
        """Seconds of both copies, into memory that has been used before"""

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Time them, if it is time for that."""
        if (trainer.global_step - 1) % self._period:
            return
        parameters = list(module.parameters())
        copied = [
            *parameters,
            *(parameter if parameter.grad is None else parameter.grad for parameter in parameters),
        ]
        if not self._place:
            self._place = [tensor.clone() for tensor in copied]
        self.forward.append(seconds(lambda: module.training_step(batch, index)))
        self.copies.append(seconds(lambda: torch._foreach_copy_(self._place, copied)))

    def ratios(self, steps: list[float], after: int, reserved: int = 1) -> tuple[float, float]:
        """Return both in plain steps, the median over the times.

        Args:
            steps: seconds of all steps, the timed things within the first of every ``period``.
            after: number of a period's steps that are not taken for plain ones.
            reserved: so many of the first times warm up.
        """
        plain = [
            statistics.mean(steps[start + after : start + self._period])
            for start in range(0, len(steps) - self._period + 1, self._period)
        ]
        times = zip(plain, self.forward, self.copies, strict=False)
        found = [(forward / step, copies / step) for step, forward, copies in times][reserved:]
        forward, copies = zip(*found, strict=True)
        return statistics.median(forward), statistics.median(copies)


def bandwidth(rounds: int = 15) -> dict[str, float]:
    """Return the share of the memory bandwidth, as a copy has it, at which sums over 11 million parameters are taken.

    A copy reads and writes each byte once. Of a sum the bytes of the tensors that it reads are counted: the squared
    norm of a change reads two tensors, ⟨g, x − x_p⟩ with ‖x − x_p‖² three, and so does G² with η and the residual.
    """
    generator = torch.Generator().manual_seed(0)
    x, g = (
        {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
        for _ in range(2)
    )
    y = {name: value - 1e-3 * g[name] for name, value in x.items()}
    place = {name: torch.empty_like(value) for name, value in x.items()}
    size, products = sum(value.nbytes for value in x.values()), Products()

    def copy() -> None:
        for name, value in x.items():
            place[name].copy_(value)

    calls: dict[str, tuple[int, Callable[[], Any]]] = {
        "squared norm of a change": (2, lambda: products.sq_change(g, 1.0, x, 1.0)),
        "inner product and distance": (
            3,
            lambda: products.inner_product_and_distance(x, y, g, 1.0),
        ),
        "a step's G², η and residual": (3, lambda: products.step(x, y, g, 1.0, expected=1e-3)),
    }
    shares: dict[str, list[float]] = {name: [] for name in calls}
    speeds = []
    for _ in range(rounds):
        speeds.append(2 * size / seconds(copy))
        for name, (reads, call) in calls.items():
            shares[name].append(reads * size / seconds(call) / speeds[-1])
    found = {name: statistics.median(values[1:]) for name, values in shares.items()}
    return {"copy, GB/s": statistics.median(speeds[1:]) / 1e9, **found}


def report(found: dict[str, float]) -> str:
    """Return the shares as text."""
    speed = found["copy, GB/s"]
    shares = ", ".join(
        f"{name} {share:.0%}" for name, share in found.items() if name != "copy, GB/s"
    )
    return f"sums over parameters, of the bandwidth of a copy ({speed:.0f} GB/s): {shares}; aimed at 60%"


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(report(bandwidth()))


if __name__ == "__main__":
    main()

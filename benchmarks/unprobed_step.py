"""What a step that is not probed costs in the callback: the four hooks, timed alone.

python -m benchmarks.unprobed_step
"""

from __future__ import annotations

import statistics
import tempfile
import time

import lightning.pytorch as pl
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_landscape import LandscapeMonitor


class Timed(LandscapeMonitor):
    """Calls the hooks of an unprobed step many times in the middle of a real run."""

    repeats, rounds = 2_000, 15

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):  # noqa: ANN001, ANN201
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.global_step != 5:  # step 0 was probed, the next is far away
            return
        step, times = self._count.step, []
        for _ in range(self.rounds):
            start = time.perf_counter()
            for _ in range(self.repeats):
                LandscapeMonitor.on_train_batch_start(self, trainer, pl_module, batch, batch_idx)
                LandscapeMonitor.on_after_backward(self, trainer, pl_module)
                LandscapeMonitor.on_before_optimizer_step(
                    self, trainer, pl_module, trainer.optimizers[0]
                )
                LandscapeMonitor.on_train_batch_end(
                    self, trainer, pl_module, outputs, batch, batch_idx
                )
                self._count.step = step
            times.append((time.perf_counter() - start) / self.repeats)
        self.microseconds = [1e6 * value for value in times]


def measure() -> float:
    """Return the microseconds of an unprobed step in the callback, the median of its rounds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monitor = Timed(every_n_steps=10**9)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=8,
            logger=False,
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[monitor],
        )
        trainer.fit(BoringModel())
    torch.set_num_threads(threads)
    return statistics.median(monitor.microseconds)


def main() -> None:
    print(f"an unprobed step in the callback: {measure():.2f} µs (median of {Timed.rounds} rounds)")
    print("target: below 20 µs")


if __name__ == "__main__":
    main()

"""What measuring costs, in plain training steps: networks with and without the monitor, in turn, in one process.

python -m benchmarks.overhead                          all networks; the larger ones take long, start with --only
python -m benchmarks.overhead --only "CNN" --quick     one of them, with less repetition
python -m benchmarks.overhead --show FILE              the table of such numbers again
python -m benchmarks.overhead --cockpit PYTHON         beside it Cockpit's economy configuration; PYTHON is of an environment
                                                  with torch, cockpit-for-pytorch and "setuptools<81"

Times are noisy, and more so where other programs run, so only things are compared that were timed side by side. The cost of a
probe is a median of ratios, of a probed step to plain ones a moment later. A mean slow-down is a ratio of sums: a training with
the monitor and one without take turns of 50 steps. The 20,000 steps are not trained: they are reckoned from the cost of a probe
and the number of probes that the schedule makes. Where a step takes more than 100 ms the 500 and the 2,000 steps are reckoned
like that too. Results go to overhead.json, with what they were run on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from benchmarks import floors, unprobed_step
from demos.resnet import resnet
from demos.sweep import quiet
from demos.transformer_language_model import Decoder
from lightning_landscape import LandscapeMonitor, PerSample, Report, Store
from lightning_landscape.fit.live import SHARE
from lightning_landscape.recording.schedule import Schedule

BATCH = 128
EPOCH = 500
"""Steps of an epoch: about those of 60,000 images"""
SLOW = 0.1
"""Seconds of a step from which long trainings are reckoned, not run"""
PERIOD, AFTER = 8, 5
"""Steps from one probe to the next where a probe's cost is measured; after so many of them its writing has ended"""
SLOW_PERIOD, SLOW_AFTER = 3, 2
"""The same where steps are slow: a probe is written within one"""
TURN = 50
"""Steps that a training with the monitor makes before one without makes as many: five probes"""
TOLD = 2**24
"""Bytes of parameters from which the memory of copies can be told from that of all else"""
DEFAULTS = {"every_n_steps": 10, "max_probes": 128}
"""The schedule of a monitor that was told nothing"""
STORE, ROOM = int(Store().gib * 2**30), 64.0
"""Bytes of its store, in which fewer probes of a large network have room; GiB with which all have it that are to be timed"""


@dataclass(frozen=True, slots=True)
class Case:
    """A network and its batch, made of random numbers: what is computed takes as long with any."""

    net: Callable[[], nn.Module]
    batch: Callable[[], tuple[Tensor, Tensor]]
    targets: dict[str, float] = field(default_factory=dict)
    """Largest ratios that are aimed at"""
    mixes: bool = False
    """Whether samples of a batch depend on each other: then there are no single ones to be evaluated"""


def images(*shape: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """Return what makes a batch of images and classes."""
    return lambda: (torch.randn(BATCH, *shape), torch.randint(10, (BATCH,)))


def tokens() -> tuple[Tensor, Tensor]:
    """Return a batch of 16 segments of 64 bytes and the bytes that follow."""
    text = torch.randint(256, (16, 65))
    return text[:, :-1], text[:, 1:]


def mlp(width: int) -> nn.Module:
    """Return an MLP 784-w-w-10."""
    sizes = (
        nn.Linear(784, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, 10),
    )
    return nn.Sequential(*sizes)


def cnn() -> nn.Module:
    """Return two 5 × 5 convolutions and two linear layers, for images of 28 × 28."""
    first = (nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2))
    second = (nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(
        *first, *second, nn.Flatten(), nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10)
    )


MLP, CNN = {"deferred": 0.25, "live": 0.9}, {"deferred": 0.05, "live": 0.5}
CASES = {
    "MLP 784-256-256-10": Case(lambda: mlp(256), images(784), MLP),
    "MLP 784-3000-3000-10": Case(lambda: mlp(3000), images(784), MLP),
    "CNN": Case(cnn, images(1, 28, 28), CNN),
    "ResNet18, 32 × 32": Case(lambda: resnet(18), images(3, 32, 32), mixes=True),
    "transformer, 4 layers": Case(lambda: Decoder(256, 128, 4, 4), tokens),
}
TARGETS = {
    "slow_down_2000": 1.03,
    "slow_down_20000": 1.01,
    "slow_down_2000_with_end": 1.08,
    "slow_down_20000_with_end": 1.02,
    "finalisation": 1.0,
}
"""Aimed at for every network: mean slow-downs at the default schedule, and plain steps for each evaluated probe"""
COPIES, BUFFERS = {"deferred": 2.0, "live": 3.0}, 2**24
"""Copies of the parameters above plain training that are aimed at, and bytes beside them: what a small network takes"""


class Module(pl.LightningModule):
    """A network under SGD."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        outputs = self.net(batch[0])
        return cross_entropy(outputs.flatten(0, -2), batch[1].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def sample_losses(module: pl.LightningModule, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the loss of every sample, shape ``(B,)``; of a text it is the mean over its tokens."""
    outputs = module.net(batch[0])
    losses = cross_entropy(outputs.flatten(0, -2), batch[1].flatten(), reduction="none")
    return losses.view(len(batch[0]), -1).mean(1)


class Turns:
    """Lets trainings go on one at a time, each in a thread of its own.

    Args:
        count: of trainings; the first one begins.
    """

    def __init__(self, count: int) -> None:
        self._going_on, self._changed = list(range(count)), threading.Condition()

    def wait(self, place: int) -> None:
        """Wait for the turn of a training."""
        with self._changed:
            self._changed.wait_for(lambda: self._going_on[0] == place)

    def let_others(self, place: int) -> None:
        """Let all others have a turn, and wait for the next one."""
        with self._changed:
            self._going_on.append(self._going_on.pop(0))
            self._changed.notify_all()
        self.wait(place)

    @contextmanager
    def taking(self, place: int) -> Iterator[None]:
        """Wait for the first turn, and leave the others to themselves when the block ends."""
        self.wait(place)
        try:
            yield
        finally:
            with self._changed:
                self._going_on.remove(place)
                self._changed.notify_all()


class Start(pl.Callback):
    """Notes when every step starts; to be the first of the callbacks. Its clock stands still while others have their turn.

    Args:
        let_others: called every 50 steps; returns when it is this training's turn again.
    """

    def __init__(self, let_others: Callable[[], None] | None = None) -> None:
        self.starts: list[float] = []
        self._let_others, self._stood = let_others, 0.0

    def now(self) -> float:
        """Return the time, in seconds."""
        return time.perf_counter() - self._stood

    def on_train_start(self, *unused: Any) -> None:
        """Forget the memory that starting took."""
        if Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5")

    def on_train_batch_start(self, *unused: Any) -> None:
        """Note a step's start."""
        if self._let_others is not None and self.starts and len(self.starts) % TURN == 0:
            before = time.perf_counter()
            self._let_others()
            self._stood += time.perf_counter() - before
        self.starts.append(self.now())


class End(pl.Callback):
    """Notes when training is over, and its largest memory, before the monitor evaluates; to be the last of the callbacks.

    It does so at the end of an epoch: of a callback that does something when training ends the monitor has to think that it
    may change the parameters, and copies them.

    Args:
        now: the clock.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now, self.trained = now, 0.0
        self.peak = 0

    def on_train_epoch_end(self, *unused: Any) -> None:
        """Note both; those of the last epoch stay."""
        self.trained = self._now()
        self.peak = peak()


def peak() -> int:
    """Return the largest resident memory of this process, in bytes; on Linux since that was reset."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return 1024 * int(lines[0].split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


@dataclass(frozen=True, slots=True)
class Timed:
    """One training."""

    steps: list[float]
    """Seconds of each"""
    training: float
    """Seconds from the first step to the end of training"""
    finalisation: float
    """Seconds after it: the monitor's evaluation"""
    peak: int
    """The process's largest resident memory until the end of training, in bytes"""
    monitor: LandscapeMonitor | None


def fit(
    case: Case,
    steps: int,
    folder: Path,
    trainer: Mapping[str, Any] | None = None,
    beside: Sequence[pl.Callback] = (),
    let_others: Callable[[], None] | None = None,
    **monitor: Any,
) -> Timed:
    """Train, with a monitor if it is told something.

    Args:
        case: network and batch.
        steps: of the optimiser.
        folder: for what the monitor writes.
        trainer: further arguments of Lightning's Trainer.
        beside: further callbacks.
        let_others: called every 50 steps; returns when it is this training's turn again, which is not counted.
        monitor: its arguments; none for no monitor.
    """
    torch.manual_seed(0)
    start, batch, module = Start(let_others), case.batch(), Module(case.net())
    end = End(start.now)
    measuring = (
        LandscapeMonitor(dirpath=folder, report=Report(images=None), **monitor) if monitor else None
    )
    still: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    callbacks = [start, *([measuring] if measuring else []), *beside, end]
    training = pl.Trainer(
        accelerator="cpu", max_steps=steps, callbacks=callbacks, **(still | dict(trainer or {}))
    )
    with hushed() if let_others is None else nullcontext():
        training.fit(module, DataLoader([batch] * min(steps, EPOCH), batch_size=None))
    ended = start.now()
    marks = [*start.starts, end.trained]
    seconds = [after - before for before, after in pairwise(marks)]
    return Timed(seconds, end.trained - start.starts[0], ended - end.trained, end.peak, measuring)


@contextmanager
def hushed() -> Iterator[None]:
    """Print nothing inside the block, in any thread: what is going to be measured is said at each training."""
    with open(os.devnull, "w") as nowhere:
        said, sys.stdout = sys.stdout, nowhere
        try:
            yield
        finally:
            sys.stdout = said


# ------------------------------------------------------------------------------------------------------------ ratios


def probe_costs(
    steps: Sequence[float], first: int | None = None, period: int = PERIOD, after: int = AFTER
) -> tuple[float, float]:
    """Return what a probe costs, in plain steps: on the probed step itself, and together with the steps after it.

    A probe's plain step is the mean of the last steps before the next probe. Medians over the probes.

    Args:
        steps: seconds of steps, of which 0, ``period``, … were probed.
        first: the first probe to count; those before it warm up. By default the second one.
        period: steps from one probe to the next.
        after: so many of them are counted together.

    Example:
        >>> probe_costs([1.0] * PERIOD + [1.5, 1.25, *[1.0] * (PERIOD - 2)])
        (0.5, 0.75)
    """
    alone, together = [], []
    for start in range(period if first is None else first, len(steps) - period + 1, period):
        part = steps[start : start + period]
        plain = statistics.mean(part[after:])
        alone.append(part[0] / plain - 1)
        together.append(sum(part[:after]) / plain - after)
    return statistics.median(alone), statistics.median(together)


def probes_made(steps: int, most: int = DEFAULTS["max_probes"]) -> tuple[int, int]:
    """Return how many probes the default schedule makes in so many steps, and how many it keeps to the end.

    Args:
        steps: of the optimiser.
        most: probes that have room.

    Example:
        >>> probes_made(500)
        (50, 50)
        >>> probes_made(500, most=46)
        (48, 25)
    """
    schedule, made = Schedule(DEFAULTS["every_n_steps"], most), 0
    for step in range(steps):
        schedule.make_room(step)
        if schedule.due(step):
            schedule.keep(step)
            made += 1
    return made, len(schedule.kept)


def reckoned(
    steps: int, probe: float, finalisation: float, most: int = DEFAULTS["max_probes"]
) -> tuple[float, float]:
    """Return the mean slow-down of a training without and with its end, from costs in plain steps.

    After epochs 1, 2, 4, … probes are compared with the present iterate. That is bounded to a share
    of the time, which is counted in full.

    Args:
        steps: of the optimiser.
        probe: steps that a probe takes while training.
        finalisation: steps that its evaluation takes.
        most: probes that have room.
    """
    made, kept = probes_made(steps, most)
    compared = SHARE if steps >= EPOCH else 0.0
    training = (1 + made * probe / steps) * (1 + compared)
    return training, training + kept * finalisation / steps


def in_turn(case: Case, steps: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Train with the defaults and without the monitor, in turns of 50 steps, a number of times.

    Returns:
        The ratio of both times, without the end and with it; the standard error of the former; and the seconds of every turn.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    ends = [0.0, 0.0]
    for _ in range(rounds):
        turns = Turns(2)

        def train(place: int, own: str, turns: Turns = turns) -> Timed:
            how: dict[str, Any] = {} if place else DEFAULTS
            with turns.taking(place):
                return fit(
                    case, steps, Path(own), let_others=lambda: turns.let_others(place), **how
                )

        with (
            hushed(),
            tempfile.TemporaryDirectory(dir=folder) as own,
            ThreadPoolExecutor(2) as threads,
        ):
            both = [threads.submit(train, place, own) for place in range(2)]
            for place, timed in enumerate(one.result() for one in both):
                seconds[place].extend(
                    sum(timed.steps[start : start + TURN]) for start in range(0, steps, TURN)
                )
                ends[place] += timed.finalisation
    measured, plain = map(sum, seconds)
    ratio, error = ratio_of_sums(*seconds)
    whole = (measured + ends[0]) / (plain + ends[1])
    return {"training": ratio, "error": error, "whole": whole, "seconds": seconds}


def ratio_of_sums(above: Sequence[float], below: Sequence[float]) -> tuple[float, float]:
    """Return the ratio of the sums of pairs, and its standard error.

    Example:
        >>> ratio_of_sums([3.0, 3.0], [2.0, 2.0])
        (1.5, 0.0)
    """
    ratio = sum(above) / sum(below)
    apart = [high - ratio * low for high, low in zip(above, below, strict=True)]
    return ratio, statistics.stdev(apart) * len(apart) ** 0.5 / sum(below)


def per_sample(case: Case, probes: int, plain: float, folder: Path) -> float:
    """Return what single samples add to the evaluation of a probe, in plain steps.

    Args:
        case: network and batch.
        probes: to be evaluated.
        plain: seconds of a plain step.
        folder: for what the monitor writes.
    """

    def mean(module: pl.LightningModule, batch: tuple[Tensor, Tensor]) -> Tensor:
        return sample_losses(module, batch).mean()

    how: dict[str, Any] = {"every_n_steps": 2, "live_epochs": None, "store": Store(gib=ROOM)}
    beside = fit(case, 2 * probes, folder / "mean", loss=mean, **how)
    timed = fit(
        case, 2 * probes, folder / "samples", loss=sample_losses, extras=[PerSample()], **how
    )
    assert timed.monitor is not None
    assert timed.monitor.summary is not None
    if timed.monitor.summary["per_sample"]["stopped_by"] is not None:
        raise SystemExit("found single samples that could not be evaluated")
    return (timed.finalisation - beside.finalisation) / probes / plain


def peak_memory(name: str, kind: str, reference: Path | None) -> int:
    """Return the largest resident memory of a process that trains for a few steps, in bytes; at the end of training.

    Where the C library is glibc it gives tensors back as soon as they are freed: what it keeps for later is tens of MB, which
    differ from run to run.
    """
    command = [
        sys.executable,
        __file__,
        "--memory",
        name,
        kind,
        *([str(reference)] if reference else []),
    ]
    at_once = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**17)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=at_once)
    return int(done.stdout.splitlines()[-1])


def memory_of(name: str, kind: str, reference: str | None) -> None:
    """Train for a few steps, and print this process's largest resident memory, in bytes, before the evaluation at the end."""
    arguments: dict[str, Any] = {
        "every_n_steps": 4,
        "live_epochs": None,
        "store": Store(save_reference=False),
    }
    if kind == "live":
        arguments["reference"] = reference
    with tempfile.TemporaryDirectory() as folder:
        trained = fit(CASES[name], 12, Path(folder), **(arguments if kind != "plain" else {}))
    print(trained.peak)


# -------------------------------------------------------------------------------------------------------------- one case


def measure(name: str, quick: bool) -> dict[str, Any]:
    """Return all numbers of one network."""
    case = CASES[name]
    probes, rounds = (12, 1) if quick else (60, 3)
    count = sum(p.numel() for p in case.net().parameters())
    result: dict[str, Any] = {"parameters": count, "batch": list(case.batch()[0].shape)}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        quietly: dict[str, Any] = {
            "max_probes": probes + 2,
            "live_epochs": None,
            "store": Store(gib=ROOM),
        }
        warm = fit(case, 6, folder / "warm-up", every_n_steps=3, **quietly)
        slow = statistics.median(warm.steps) > SLOW
        period, after = (SLOW_PERIOD, SLOW_AFTER) if slow else (PERIOD, AFTER)
        quietly["every_n_steps"] = period
        fewer = (
            max(12, probes // 3) if slow else probes
        )  # of all but the deferred probes, from which slow-downs are reckoned
        floor = floors.Floor(period)
        bare = fit(case, period * (fewer + 1), folder / "floor", beside=[floor])
        result["forward"], result["copies"] = floor.ratios(bare.steps, after)

        def costs(kind: str, **how: Any) -> Timed:
            many = probes if kind == "deferred" else fewer
            timed = fit(case, period * (many + 1), folder / kind, **quietly, **how)
            result[kind], result[f"{kind}_with_writing"] = probe_costs(
                timed.steps, period=period, after=after
            )
            return timed

        deferred = costs("deferred")
        assert deferred.monitor is not None
        assert deferred.monitor.summary is not None
        evaluated = sum(probe.evaluated for probe in deferred.monitor.table or ())
        if evaluated != probes + 1:
            raise SystemExit(
                f"found {evaluated} of {probes + 1} probes evaluated: is there too little room on the disk?"
            )
        plain = statistics.median(
            seconds for place, seconds in enumerate(deferred.steps) if place % period >= after
        )
        result["plain_step_ms"], result["probes"] = 1e3 * plain, probes
        result["finalisation"] = deferred.finalisation / plain / evaluated
        result["bytes_per_probe"] = deferred.monitor.summary["run"]["store"]["bytes"] / evaluated
        reference = folder / "deferred" / "landscape" / "reference.safetensors"
        costs("live", reference=str(reference))
        costs("deferred_with_tensorboard", trainer={"logger": TensorBoardLogger(folder)})
        result["per_sample"] = None if case.mixes else per_sample(case, fewer, plain, folder)
        again = 1 if quick or slow else 3
        base = statistics.median(peak_memory(name, "plain", None) for _ in range(again))
        for kind in ("deferred", "live"):
            above = (
                statistics.median(peak_memory(name, kind, reference) for _ in range(again)) - base
            )
            result[f"memory_{kind}_mib"] = above / 2**20
            result[f"memory_{kind}_copies"] = above / (4 * count) if 4 * count > TOLD else None
        cost = max(0.0, result["deferred_with_writing"])
        most = min(DEFAULTS["max_probes"], int(STORE // result["bytes_per_probe"]))
        result["probes_at_most"] = most
        for steps in (500, 2000, 20_000):
            key = f"slow_down_{steps}"
            if steps == 20_000 or slow or (quick and steps > 500):
                result[key], result[f"{key}_with_end"] = reckoned(
                    steps, cost, result["finalisation"], most
                )
                result[f"{key}_how"] = "reckoned"
            else:
                turns = in_turn(case, steps, rounds if steps * plain < 20 else 1, folder)
                result[key], result[f"{key}_with_end"] = turns["training"], turns["whole"]
                result |= {
                    f"{key}_how": "trained",
                    f"{key}_error": turns["error"],
                    f"{key}_seconds": turns["seconds"],
                }
    return result


def cockpit(python: str, name: str) -> dict[str, Any]:
    """Return what Cockpit's economy configuration costs per tracked step of a network, by another environment's Python."""
    script = Path(__file__).with_name("overhead_cockpit.py")
    done = subprocess.run([python, str(script), name], capture_output=True, text=True)
    if done.returncode:
        return {
            "failed": done.stderr.strip().splitlines()[-1]
            if done.stderr.strip()
            else f"status {done.returncode}"
        }
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


# ----------------------------------------------------------------------------------------------------------------- report


def environment() -> dict[str, Any]:
    """Return what the numbers depend on."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        models = [
            line
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        cpu = models[0].split(":", 1)[1].strip() if models else cpu
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": pl.__version__,
    }
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        **versions,
    }


ROWS = {
    "plain_step_ms": "a plain step, ms",
    "copies": "floor: copies of x and g",
    "forward": "floor: a forward pass",
    "deferred": "a deferred probe, on its step",
    "deferred_with_writing": "… and while it is written",
    "deferred_with_tensorboard": "a deferred probe, TensorBoard",
    "live": "a live probe",
    "finalisation": "finalisation, each probe",
    "per_sample": "… PerSample() adds",
    "slow_down_500": "mean slow-down, 500 steps",
    "slow_down_2000": "… 2,000",
    "slow_down_20000": "… 20,000",
    "slow_down_500_with_end": "with finalisation, 500 steps",
    "slow_down_2000_with_end": "… 2,000",
    "slow_down_20000_with_end": "… 20,000",
    "memory_deferred_copies": "memory above plain, deferred, copies of x",
    "memory_live_copies": "… live",
    "bytes_per_probe": "bytes on disk, each probe",
}


def target_of(name: str, row: str) -> float | None:
    """Return what is aimed at."""
    kind = row.removeprefix("memory_").removesuffix("_copies")
    return CASES[name].targets.get(
        row, TARGETS.get(row, COPIES.get(kind) if row.startswith("memory") else None)
    )


def report(
    results: dict[str, dict[str, Any]], microseconds: float, bandwidth: dict[str, float]
) -> str:
    """Return the table: rows are quantities, columns networks; what is aimed at stands behind a ≤.

    Args:
        results: all numbers of each network.
        microseconds: of a step that is not probed.
        bandwidth: what `floors.bandwidth` found.
    """
    width = max(map(len, ROWS.values()))
    lines = [" " * width + "".join(f"  {name:>22s}" for name in results)]
    for row, title in ROWS.items():
        cells = []
        for name, result in results.items():
            value, target = result.get(row), target_of(name, row)
            if value is None:
                cells.append("—")
                continue
            shown = (
                f"{value:,.0f}"
                if value >= 1000
                else f"{value:.3g}"
                if "slow_down" not in row
                else f"{value:.3f}"
            )
            if result.get(f"{row.removesuffix('_with_end')}_how") == "reckoned":
                shown = f"~{shown}"
            if f"{row}_error" in result:
                shown = f"{shown} ± {result[f'{row}_error']:.3f}"
            beside = BUFFERS / (4 * result["parameters"]) if row.startswith("memory") else 0.0
            missed = target is not None and value > target + beside
            cells.append(
                shown if target is None else f"{shown} ≤ {target:g}{' !' if missed else ''}"
            )
        lines.append(f"{title:{width}s}" + "".join(f"  {cell:>22s}" for cell in cells))
    lines.append(
        f"\nan unprobed step: {microseconds:.1f} µs ≤ 20 µs{'' if microseconds <= 20 else ' !'}"
    )
    lines.append(floors.report(bandwidth))
    lines.append(
        "All but ms, µs and bytes are plain training steps, or ratios to plain training; floors are timed alone, in"
    )
    lines.append(
        "the middle of a plain training. ~ reckoned from the costs of probes and their number; ± standard error over"
    )
    lines.append(
        "turns of 50 steps; ! above what was aimed at, of memory by more than 16 MiB; — too little to tell, or none."
    )
    for name, result in results.items():
        if "cockpit" in result:
            found = result["cockpit"]
            cost = (
                f"{found['tracked']:.3g} plain steps a tracked step"
                if "tracked" in found
                else found["failed"]
            )
            lines.append(f"Cockpit, economy, {name}: {cost}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=CASES,
        default=list(CASES),
        metavar="NAME",
        help=", ".join(CASES),
    )
    parser.add_argument("--quick", action="store_true", help="less repetition")
    parser.add_argument("--out", type=Path, default=Path("runs/overhead/overhead.json"))
    parser.add_argument(
        "--cockpit", metavar="PYTHON", help="Python of an environment with cockpit-for-pytorch"
    )
    parser.add_argument(
        "--show", type=Path, metavar="FILE", help="print the table of such numbers, measure nothing"
    )
    parser.add_argument("--memory", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    if given.show:
        found = json.loads(given.show.read_text(encoding="utf-8"))
        print(report(found["networks"], found["unprobed_step_us"], found["bandwidth"]))
        return
    if given.memory:
        memory_of(
            given.memory[0], given.memory[1], given.memory[2] if len(given.memory) > 2 else None
        )
        return
    quiet()
    microseconds, bandwidth = unprobed_step.measure(), floors.bandwidth()
    results = {}
    for name in given.only:
        print(f"  {name} …", file=sys.stderr, flush=True)
        results[name] = measure(name, given.quick)
        if given.cockpit:
            results[name]["cockpit"] = cockpit(given.cockpit, name)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "environment": environment(),
        "quick": given.quick,
        "unprobed_step_us": microseconds,
        "bandwidth": bandwidth,
        "networks": results,
    }
    given.out.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(report(results, microseconds, bandwidth))
    print(f"\n  numbers   {given.out}")


if __name__ == "__main__":
    main()

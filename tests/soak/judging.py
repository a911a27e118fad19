"""Compares tables with what is computed again, slowly, from everything that an unmonitored run recorded in each process."""

import math

import torch
from lightning.pytorch.callbacks import Callback

from tests.helpers.brute_force import BruteForce, Recording
from tests.helpers.players import PlayersRecording

# relative to the size of what is compared: gradients are summed, and losses rounded, in the precision in force
TOLERANCE = {"32-true": 5e-5, "bf16-mixed": 5e-5, "16-mixed": 3e-3, "64-true": 1e-9, "bf16-true": 3e-2}


class Ends(Callback):
    """Each process writes down what training leaves behind: first in the list, so that nothing of ours comes before."""

    def __init__(self, folder):
        self.folder = folder

    def _write(self, trainer, module, name):
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "module": {key: value.clone() for key, value in module.state_dict().items()},
            "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
            "random": torch.get_rng_state(),
        }
        torch.save(state, self.folder / f"{name}-{trainer.global_rank}.pt")

    def on_fit_start(self, trainer, pl_module):
        self._write(trainer, pl_module, "start")

    def on_train_end(self, trainer, pl_module):
        self._write(trainer, pl_module, "end")

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        (self.folder / f"stepped-{trainer.global_rank}").touch()


def same_ends(one, two, processes):
    """Return None where two runs ended alike in every process, else what differs."""
    for rank in range(processes):
        a, b = (torch.load(folder / f"end-{rank}.pt", weights_only=False) for folder in (one, two))
        difference = _difference(a, b, f"process {rank}")
        if difference:
            return difference
    return None


def _difference(a, b, where):
    if isinstance(a, torch.Tensor):
        alike = a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num()) and torch.equal(a.isnan(), b.isnan())
        return None if alike else where
    if isinstance(a, dict):
        if list(a) != list(b):
            return f"{where}: keys"
        return next((d for key in a if (d := _difference(a[key], b[key], f"{where}.{key}"))), None)
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return f"{where}: length"
        return next((d for i, (x, y) in enumerate(zip(a, b, strict=True)) if (d := _difference(x, y, f"{where}[{i}]"))), None)
    return None if a == b or (a != a and b != b) else where


class Rows(Recording):
    """Records a run without the monitor and, at its end, computes this process's part of each row from the recording."""

    def __init__(self, folder, kind, autocast, loss):
        super().__init__()
        self.folder, self.kind, self.autocast, self.loss = folder, kind, autocast, loss

    def on_train_end(self, trainer, pl_module):
        self.folder.mkdir(parents=True, exist_ok=True)
        reference = self.folder / "reference.pt"
        there = torch.load(reference) if reference.exists() else None
        brute = BruteForce(self, self.kind, self.autocast, self.loss, there)
        usable = [s for s in self.steps if s.micro_batches and all(math.isfinite(m.losses[0]) for m in s.micro_batches)]
        rows = [_part(brute, step, usable[0]) for step in usable]
        torch.save(rows, self.folder / f"rows-{trainer.global_rank}.pt")


def _part(brute, step, first):
    x = {name: step.before[name] for name in brute.names}
    loss, gradient = brute.window(step, x, gradient=True)
    held = [name for name in brute.held_at(step) if name in gradient]
    return {
        "step": step.step,
        "epoch": step.epoch,
        "logged_step": step.logged_step,
        "loss": loss,
        "reference_loss": brute.window(step, brute.reference)[0],
        "initial_loss": brute.window(step, {name: first.before[name] for name in brute.names})[0],
        "gradient": {name: gradient[name] for name in held},
        "before": x,
        "after": {name: step.after[name] for name in brute.names},
        "reference": brute.reference,
    }


class PlayersRows(PlayersRecording):
    """The same for one player of a GAN."""

    def __init__(self, folder, player, autocast):
        super().__init__(player)
        self.folder, self.autocast = folder, autocast

    def on_train_end(self, trainer, pl_module):
        self.folder.mkdir(parents=True, exist_ok=True)
        reference = self.folder / "reference.pt"
        there = None
        if reference.exists():
            there = {name: value for name, value in torch.load(reference).items() if name in self.names()}
        rows = [self.row(step, self.autocast, there) for step in self.steps]
        torch.save(rows, self.folder / "players.pt")


def rows_of(folder, processes):
    """Return the rows of a run: losses and gradients are means over its processes."""
    if (folder / "players.pt").exists():
        return torch.load(folder / "players.pt", weights_only=False)
    parts = [torch.load(folder / f"rows-{rank}.pt", weights_only=False) for rank in range(processes)]
    return [_row(same_step) for same_step in zip(*parts, strict=True)]


def _row(parts):
    first, count = parts[0], len(parts)
    gradient = {}
    for part in parts:
        for name, value in part["gradient"].items():
            gradient[name] = gradient.get(name, 0) + value / count
    x = {name: value.double() for name, value in first["before"].items()}
    square = sum(float((g * g).sum()) for g in gradient.values())
    moved = {name: x[name] - first["after"][name].double() for name in x}
    away = {name: x[name] - first["reference"][name].double() for name in x}
    step_size = sum(float((moved[name] * g).sum()) for name, g in gradient.items()) / square if square else 0.0
    rest = [moved[name] - step_size * gradient.get(name, 0) for name in x]
    return {
        **{name: first[name] for name in ("step", "epoch", "logged_step")},
        **{name: sum(part[name] for part in parts) / count for name in ("loss", "reference_loss", "initial_loss")},
        "inner_product": sum(float((away[name] * g).sum()) for name, g in gradient.items()),
        "grad_sq_norm": square,
        "sq_distance": sum(float((d * d).sum()) for d in away.values()),
        "step_size": step_size,
        "step_residual": math.sqrt(sum(float((r * r).sum()) for r in rest)),
        "moved": math.sqrt(sum(float((m * m).sum()) for m in moved.values())),
    }


def disagreement(table, rows, tolerance, *, exact):
    """Return None where a table equals rows that were computed again, else what differs.

    Args:
        table: the monitor's.
        rows: of every step that can be measured.
        tolerance: relative to the size of what is compared.
        exact: whether losses are to be equal to the last bit.
    """
    by_step = {row["step"]: row for row in rows}
    if not len(table):
        return "no probes"
    unknown = [probe.step for probe in table if probe.step not in by_step]
    if unknown:
        return f"steps {unknown} are not measurable"
    if table[0].step != rows[0]["step"]:
        return f"the first probe is of step {table[0].step}, not {rows[0]['step']}"
    for probe in table:
        row = by_step[probe.step]
        scale = math.sqrt(row["grad_sq_norm"] * row["sq_distance"])
        length = row.get("moved", math.sqrt(row["grad_sq_norm"]) * abs(row["step_size"]))
        slack = {"inner_product": scale, "step_residual": 2 * length, "step_size": length / math.sqrt(row["grad_sq_norm"] or 1)}
        for column, expected in row.items():
            found = getattr(probe, column, None)
            if column in ("moved", "secant") or (column == "initial_loss" and found is None):
                continue
            loss = column in ("loss", "reference_loss", "initial_loss")
            off = 0.0 if (loss and exact) or column in ("step", "epoch", "logged_step") else tolerance
            if not abs(found - expected) <= off * slack.get(column, abs(expected)) + (1e-12 if off else 0.0):
                return f"step {probe.step}, {column}: {found!r}, computed again {expected!r}"
    return None

"""The slow way: each process records its micro-batches without the monitor, and evaluates them.

It writes numbers and gradients of every step. The comparison takes the means over processes.
"""

import copy
import math
from dataclasses import dataclass, replace

import torch

from tests.helpers.brute_force import BruteForce, Recording, recorded
from tests.helpers.players import PlayersRecording
from tests.soak import training

FRACTIONS = tuple(part / 10 for part in range(1, 10))


@dataclass
class Entry:
    """One step of one process: losses, and gradients in float64 with the norms of their addends."""

    step: int
    epoch: int
    logged_step: int | None
    before: dict
    after: dict
    loss: float = math.nan
    reference_loss: float = math.nan
    initial_loss: float = math.nan
    gradient: tuple = ({}, 0.0, 0)
    """g, the sum of the norms of its addends, their number"""
    next_gradient: tuple = ({}, 0.0, 0)
    line: tuple = ()
    """Losses at `FRACTIONS` between x_k and x_p"""


class Alone(PlayersRecording):
    """Of a module that steps by hand, with one optimizer."""

    def __init__(self):
        self.index, self.player, self.batches, self.loss = 0, "net", 1, training.plain_loss
        self.steps, self.doors, self.made, self.in_batch = [], [], 0, 0


def save(one, folder, rank, player, names, last, pairs, evaluate):
    """Evaluate every step and write the results.

    Args:
        pairs: recorded steps with an entry for each.
        evaluate: gives loss and gradient of a step at parameters, a pair for each micro-batch.
    """
    end = {name: last[name] for name in names}
    if one.reference == "file" and rank == 0:
        generator = torch.Generator().manual_seed(one.number)
        aside = {
            n: p + 0.1 * torch.randn(p.shape, generator=generator).to(p.dtype)
            for n, p in end.items()
        }
        torch.save(aside, folder / f"{player}.pt")
    if one.reference == "file":
        if one.processes > 1:
            torch.distributed.barrier()
        end = torch.load(folder / f"{player}.pt")

    def at(step, values, gradient=False):
        found = evaluate(step, {name: values[name] for name in names}, gradient)
        loss = sum(loss for loss, _ in found) / len(found)
        total, addends = {}, 0.0
        for _, part in found:
            addends += math.sqrt(
                sum(float(g.square().sum()) for n, g in part.items() if n in names)
            ) / len(found)
            for name, g in part.items():
                if name in names:
                    total[name] = total.get(name, 0) + g / len(found)
        return loss, (total, addends, len(found))

    start, drawn = None, False
    for step, entry in pairs:
        if not getattr(step, "micro_batches", True):
            continue  # training_step returned None for each micro-batch: nothing to measure
        entry.loss, entry.gradient = at(step, entry.before, True)
        if not math.isfinite(entry.loss):
            continue
        start = start or entry.before
        entry.reference_loss, entry.initial_loss = at(step, end)[0], at(step, start)[0]
        if one.secant:
            entry.next_gradient = at(step, entry.after, True)[1]
        if one.segments and not drawn:
            drawn = True
            points = ({n: torch.lerp(entry.before[n], end[n], t) for n in names} for t in FRACTIONS)
            entry.line = tuple(at(step, point)[0] for point in points)
    found = {"entries": [entry for _, entry in pairs], "names": names, "reference": end}
    torch.save(found, folder / f"recording-{player}-{rank}.pt")


class Automatic(Recording):
    def __init__(self, one, folder, kind):
        super().__init__()
        self.one, self.folder, self.kind = one, folder, kind

    def teardown(self, trainer, pl_module, stage):
        if self.one.optimizer == "lbfgs" or self.last is None:
            return
        loss = training.user_loss(self.one, None)
        brute = BruteForce(self, self.kind, training.CONTEXTS[self.one.precision], loss)

        def evaluate(step, values, gradient):
            parts = [replace(step, micro_batches=[micro]) for micro in step.micro_batches]
            found = [brute.window(part, values, gradient) for part in parts]
            held = set(brute.held_at(step))
            return [
                (value, {n: g for n, g in total.items() if n in held}) for value, total in found
            ]

        pairs = [
            (step, Entry(step.step, step.epoch, step.logged_step, step.before, step.after))
            for step in self.steps
        ]
        save(
            self.one, self.folder, trainer.global_rank, None, self.names, self.last, pairs, evaluate
        )


def by_hand(kind):
    """Return a class of recordings that write what they found when training has ended."""

    class ByHand(kind):
        def __init__(self, one, folder, *arguments):
            super().__init__(*arguments)
            self.one, self.folder = one, folder

        def teardown(self, trainer, pl_module, stage):
            context = training.CONTEXTS[self.one.precision]

            def evaluate(step, values, gradient):
                return [
                    self.evaluate(replace(step, batches=[batch]), values, context, gradient)
                    for batch in step.batches
                ]

            pairs = [
                (step, Entry(step.step, step.epoch, None, step.before, step.after))
                for step in self.steps
            ]
            player = self.player if self.one.players else None
            save(
                self.one,
                self.folder,
                trainer.global_rank,
                player,
                self.names(),
                self.last,
                pairs,
                evaluate,
            )

    return ByHand


def record(one, folder):
    """Train without the monitor, record everything and write files."""
    if one.players:
        recordings = [by_hand(PlayersRecording)(one, folder, player) for player in one.players]
        training.fit(one, folder, recordings)
    elif one.model in ("manual", "manual_without_loss"):
        training.fit(one, folder, [by_hand(Alone)(one, folder)])
    else:
        plainly = training.module_class(one)
        kind = recorded(plainly)
        kind.recording = Automatic(one, folder, plainly)
        training.fit(one, folder, [kind.recording], kind)


def read(one, folder, player):
    """Return the steps averaged over all processes, and the other files."""
    ranks = [
        torch.load(folder / f"recording-{player}-{rank}.pt", weights_only=False)
        for rank in range(one.processes)
    ]
    first, entries = ranks[0], []
    for parts in zip(*(rank["entries"] for rank in ranks), strict=True):
        together = copy.copy(parts[0])
        for column in ("loss", "reference_loss", "initial_loss"):
            setattr(together, column, sum(getattr(part, column) for part in parts) / len(parts))
        for column in ("gradient", "next_gradient"):
            several = [getattr(part, column) for part in parts]
            names = dict.fromkeys(name for total, _, _ in several for name in total)
            mean = {
                n: sum(total[n] for total, _, _ in several if n in total) / len(parts)
                for n in names
            }
            count = sum(count for _, _, count in several)
            setattr(
                together, column, (mean, sum(size for _, size, _ in several) / len(parts), count)
            )
        together.line = tuple(
            sum(losses) / len(parts) for losses in zip(*(part.line for part in parts), strict=True)
        )
        entries.append(together)
    return entries, first["names"], first["reference"]

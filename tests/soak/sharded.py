"""A sharded configuration (FSDP2), compared with one process on the batches of both.

``python -m tests.soak.sharded FOLDER JSON`` is one run. Lightning starts the second process itself,
by the same command.
"""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from lightning_landscape import LandscapeMonitor, load
from tests.helpers import distributed
from tests.helpers.brute_force import BruteForce, Recording, recorded
from tests.helpers.sharded_script import Sharded, WholeParameters
from tests.soak import training

ROOT = Path(__file__).parents[2]
SECONDS = 90


def module_class(one):
    class Drawn(Sharded):
        def configure_optimizers(self):
            return training.build(
                one.optimizer, [p for p in self.net.parameters() if p.requires_grad]
            )

    return Drawn


def fit(one, folder, callbacks, kind, strategy=None, last=()):
    distributed.train(
        folder,
        callbacks,
        processes=1 if strategy is None else 2,
        strategy=strategy,
        module=kind,
        callbacks_after=list(last),
        epochs=2,
        max_steps=one.max_steps,
        accumulate_grad_batches=int(one.accumulation),
        gradient_clip_val=None if one.clipping == "none" else 0.05,
    )


def started(folder, one, **arguments):
    clean = {
        k: v
        for k, v in os.environ.items()
        if "RANK" not in k and not k.startswith(("MASTER", "PL_"))
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.soak.sharded",
            str(folder),
            json.dumps([one.seed, one.number, arguments]),
        ],
        cwd=ROOT,
        env=clean | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    return done.returncode, f"status {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}"


def judge(one, folder):
    status, output = started(folder / "without", one, monitored=False)
    if status != 0:
        return "not runnable", output.splitlines()[-1][:160]
    runs = ["run"] if one.reference == "final" else ["first", "run"]
    for name in runs:
        reference = (
            {"reference": str(folder / "first" / "run" / "landscape" / "reference")}
            if name != runs[0]
            else {}
        )
        status, output = started(folder / name, one, monitored=True, **reference)
        if status != 0:
            return "FAILED", output
        for rank in range(2):
            a, b = (torch.load(folder / kind / f"end-{rank}.pt") for kind in ("without", name))
            assert torch.equal(a["random"], b["random"]), (
                f"{name}: random numbers of process {rank}"
            )
            assert all(torch.equal(a["module"][n], b["module"][n]) for n in a["module"]), (
                f"{name}: parameters"
            )
    run = load(folder / "run" / "run")
    whole = module_class(one)
    kind = recorded(whole)
    kind.recording = Recording()
    fit(one, folder / "whole", [kind.recording], kind)
    loss = distributed.smoothed_loss if one.loss == "user" else None
    brute = BruteForce(kind.recording, whole, training.CONTEXTS["32-true"], loss)
    steps = {step.step: step for step in kind.recording.steps}
    from tests.soak.comparison import near, schedule

    class Due:
        def __init__(self, step):
            self.step, self.loss, self.gradient = step, 0.0, ({"": torch.ones(())}, 1.0, 1)

    assert [probe.step for probe in run.table] == schedule(one, [Due(step) for step in steps])
    first = next(iter(steps.values()))
    # Two processes divide their sums differently from one: one rounding per step, which adds up.
    rtol = 64 * torch.finfo(torch.float32).eps * (2 + len(steps))
    for probe in run.table:
        row = brute.row(steps[probe.step], first)
        for column in ("loss", "reference_loss", "grad_sq_norm", "sq_distance"):
            near(
                getattr(probe, column),
                row[column],
                rtol * (abs(row[column]) + 1e-6),
                f"step {probe.step}, {column}",
            )
        size = (row["grad_sq_norm"] * row["sq_distance"]) ** 0.5
        near(
            probe.inner_product,
            row["inner_product"],
            rtol * size + 1e-9,
            f"step {probe.step}, inner_product",
        )
        near(
            probe.step_size,
            row["step_size"],
            rtol * (abs(row["step_size"]) + 1e-2),
            f"step {probe.step}, step_size",
        )
    assert run.summary["run"]["fidelity"]["exact"] is True, "fidelity"
    return "agrees", ""


def main(folder, text):
    from tests.soak.configuration import draw

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    seed, number, arguments = json.loads(text)
    one = draw(seed, number)
    monitors = []
    if arguments.pop("monitored"):
        loss = distributed.smoothed_loss if one.loss == "user" else None
        monitors = [LandscapeMonitor(**training.arguments_of(one), loss=loss, **arguments)]
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    fit(one, Path(folder), monitors, module_class(one), strategy, [WholeParameters(Path(folder))])
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])

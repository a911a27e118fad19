"""The α-β-condition and the width of an MLP: the smallest α and β over all runs of each width.

python demos/mlp_width.py                      scikit-learn's digits, widths 16 to 1024, 2 seeds
python demos/mlp_width.py --root DIR           one epoch of the IDX files in DIR (Fashion-MNIST)
python demos/mlp_width.py --larger --root DIR  five epochs, widths 32 to 2048, 2 seeds
python demos/mlp_width.py --full --root DIR    the paper's setting: Fashion-MNIST, widths 32 to
                                               4096, 4 seeds, 1500 epochs

Islamov et al. 2024, figures 4, 11 and 12: MLP d-w-w-10, SGD with step size 0.09, batch 64. Finding
of the paper: the smallest α and β rise with the width up to about 512, then fall. The small setting
takes less than a minute, the larger one a quarter of an hour. Seeds are 0, 1, …; compare with:
lightning-landscape compare runs/mlp_width/small --group-by width
"""

from __future__ import annotations

import math
from dataclasses import replace

if __package__:
    from demos.data import Images
    from demos.experiment import Finding, conclude, measured, options, seen
    from demos.mlp import MLP
    from demos.sweep import (
        MONITOR,
        NAMES,
        add_epochs,
        course,
        draw,
        epochs,
        listed,
        quiet,
        settled,
        sweep,
        turning,
        turns,
    )
else:
    from data import Images
    from experiment import Finding, conclude, measured, options, seen
    from mlp import MLP
    from sweep import (
        MONITOR,
        NAMES,
        add_epochs,
        course,
        draw,
        epochs,
        listed,
        quiet,
        settled,
        sweep,
        turning,
        turns,
    )

SMALL, LARGER, FULL = (
    (16, 32, 64, 128, 256, 512, 1024),
    (32, 128, 512, 1024, 2048),
    (32, 128, 512, 1024, 2048, 4096),
)
"""Widths of the hidden layers"""
SMALL_STEPS, LARGER_STEPS, FULL_EPOCHS = 600, 4700, 1500
LR, BATCH = 0.09, 64
STORE = 64.0
"""Disk for the probes in GiB; a probe of the widest network has 160 MB"""


def main() -> None:
    given = options(
        "mlp_width", __doc__, small_seeds=2, larger_seeds=2, full_seeds=4, add=add_epochs
    )
    chosen = settled(given, "the four IDX files of Fashion-MNIST")
    quiet()
    images = Images("idx" if chosen.root else "digits", chosen.root, BATCH)
    features = math.prod(images.shape)
    length = epochs(
        chosen, images.steps, chosen.pick(SMALL_STEPS, SMALL_STEPS, LARGER_STEPS), FULL_EPOCHS
    )
    runs = []
    for width in chosen.pick(SMALL, FULL, LARGER):
        print(f"  width {width}, {len(chosen.seeds)} seeds, {length} epochs", flush=True)
        runs += [
            measured(
                chosen.out / f"width-{width}" / f"seed-{seed}",
                lambda: MLP(features, width, LR),  # noqa: B023, called at once
                lambda: images,
                seed=seed,
                monitor={
                    **MONITOR,
                    "store": replace(MONITOR["store"], gib=chosen.pick(4.0, STORE, 8.0)),
                },
                max_epochs=length,
                accelerator=chosen.pick("cpu", "auto"),
            )
            for seed in chosen.seeds
        ]

    found = sweep(runs, "width")
    names = ("beta at 0.1", "beta at 1", "alpha", "beta")
    findings = [turning(found, name, 1, f"{NAMES[name]} with width", chosen.full) for name in names]
    at_one = found.values("beta at 1")
    top = max(range(len(at_one)), key=lambda place: at_one[place] or 0)
    findings.append(
        Finding(
            "the turn is at a width of about 512",
            seen(bool(turns(at_one)) and 256 <= found.keys[top] <= 1024 if chosen.full else None),
            f"here the smallest β at δ = 1 is largest at width {found.keys[top]}: "
            f"{listed(found.keys, at_one)}",
        )
    )
    conclude("mlp_width", chosen, list(found.rows()), findings)
    draw(
        chosen.out / "mlp_width.png",
        f"MLPs: the smallest β at δ = 1 {course(found.keys, at_one)};\n"
        f"the α of the pair with the smallest β/δ {course(found.keys, found.values('alpha'))}",
        "width of both hidden layers",
        {
            "smallest β at δ = α − β = 0.1": {"β": (found, "beta at 0.1")},
            "smallest β at δ = α − β = 1": {"β": (found, "beta at 1")},
            "pair with the smallest β/δ": {"α": (found, "alpha"), "β": (found, "beta")},
        },
        f"filled: holds over all {len(chosen.seeds)} seeds; hollow: one seed alone",
    )


if __name__ == "__main__":
    main()

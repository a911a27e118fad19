"""Draws, judges and counts configurations.

``python -m tests.soak [--seed S] [--only N] [--count C] [--seconds T]``
"""

import argparse
import collections
import logging
import os
import sys
import time
from dataclasses import asdict

import torch

from tests.soak.configuration import AXES, draw
from tests.soak.verdict import AGREES, FAILED, NOT_RUNNABLE, REFUSED, isolated

SHARE = 0.75
"""Smallest share of the configurations that must agree, since refusals cover nothing"""


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=200, help="configurations")
    parser.add_argument("--only", type=int, default=None, help="judge one configuration alone")
    parser.add_argument(
        "--seconds", type=float, default=1500, help="no configuration is started later than that"
    )
    parser.add_argument(
        "--watchdog",
        type=float,
        default=60,
        help="seconds after which a configuration hangs; thrice for shards",
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # so that no thread is running when a configuration is forked
    os.environ["OMP_NUM_THREADS"] = "1"
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    print(f"seed {options.seed}", flush=True)
    started, judged = time.monotonic(), []
    for number in range(options.count) if options.only is None else [options.only]:
        if time.monotonic() - started > options.seconds:
            print(f"time is over after {len(judged)} configurations")
            break
        one, begun = draw(options.seed, number), time.monotonic()
        verdict, said = isolated(one, options.watchdog * (3 if one.strategy == "fsdp2" else 1))
        judged.append((one, verdict))
        print(f"{number:4d} {time.monotonic() - begun:5.1f} s  {verdict:12s} {one}", flush=True)
        if verdict == FAILED:
            print(
                f"     python -m tests.soak --seed {options.seed} --only {number}\n{said}",
                flush=True,
            )
        elif said:
            print(f"     {said}", flush=True)
    return report(judged, time.monotonic() - started, options.only is not None)


def report(judged, seconds, alone):
    """Print counts; return the exit status."""
    counts = collections.Counter(verdict for _, verdict in judged)
    for axis in AXES:
        values = collections.Counter(
            str(asdict(one)[axis]) for one, verdict in judged if verdict == AGREES
        )
        if not alone:
            missing = sorted({str(value) for value in AXES[axis]} - set(values))
            counted = ", ".join(f"{value} {count}" for value, count in sorted(values.items()))
            print(f"{axis}: {counted}; never: {', '.join(missing) or 'none'}")
    print(
        ", ".join(f"{kind} {counts[kind]}" for kind in (AGREES, REFUSED, NOT_RUNNABLE, FAILED)),
        f"in {seconds:.0f} s",
    )
    too_few = not alone and counts[AGREES] < SHARE * len(judged)
    if too_few:
        print(f"of {len(judged)} configurations {SHARE:.0%} must agree")
    return 1 if counts[FAILED] or too_few else 0


if __name__ == "__main__":
    sys.exit(main())

"""Draw configurations, run them, and print what came of them; status 1 if one failed or too few agree."""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.soak.drawing import draw
from tests.soak.running import AGREES, FAILED, NOT_RUNNABLE, REFUSED, Child


def soak(seed, numbers, jobs, seconds, each):
    """Return the outcome of each configuration; those that no time is left for have none."""
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    waiting, running, outcomes = list(numbers), [], {}
    deadline = time.monotonic() + seconds
    while running or (waiting and time.monotonic() < deadline):
        while waiting and len(running) < jobs and time.monotonic() < deadline:
            number = waiting.pop(0)
            configuration = draw(seed, number)
            shards = 3 if configuration.strategy == "fsdp2" else 1
            running.append(Child(configuration, folder / str(number), shards * each))
        for child in list(running):
            outcome = child.outcome()
            if outcome is None:
                continue
            running.remove(child)
            outcomes[child.configuration.number] = (child.configuration, outcome)
            print(f"{child.configuration.number:4d} {outcome.kind}: {outcome.said}", flush=True)
            if outcome.kind == FAILED:
                print(f"     {child.configuration}", flush=True)
                print(f"     python -m tests.soak --seed {seed} --only {child.configuration.number}", flush=True)
        time.sleep(0.02)
    print(f"what failed left its files in {folder}")
    return outcomes


def report(outcomes, asked):
    """Print counts; return whether all is well."""
    counts = Counter(outcome.kind for _, outcome in outcomes.values())
    print(f"\n{len(outcomes)} of {asked} configurations:")
    for kind in (AGREES, REFUSED, NOT_RUNNABLE, FAILED):
        print(f"  {counts[kind]:4d} {kind}")
    agreeing = [configuration.axes() for configuration, outcome in outcomes.values() if outcome.kind == AGREES]
    print("\namong those that agree:")
    for axis in agreeing[0] if agreeing else ():
        values = Counter(axes[axis] for axes in agreeing)
        print(f"  {axis}: " + ", ".join(f"{value} {count}" for value, count in sorted(values.items())))
    reasons = Counter(outcome.said.partition(";")[0][:110] for _, outcome in outcomes.values() if outcome.kind == REFUSED)
    print("\nrefused:")
    for reason, count in reasons.most_common():
        print(f"  {count:4d} {reason}")
    return counts[FAILED] == 0 and counts[AGREES] >= 0.7 * len(outcomes) and len(outcomes) == asked


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of configurations, in the place of all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=1800, help="after so many nothing new is started")
    parser.add_argument("--each", type=float, default=90, help="a configuration that takes longer has failed")
    options = parser.parse_args(argv)
    numbers = options.only or range(options.count)
    print(f"seed {options.seed}", flush=True)
    outcomes = soak(options.seed, numbers, options.jobs, options.seconds, options.each)
    return 0 if report(outcomes, len(numbers)) else 1


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(sys.argv[1:]))

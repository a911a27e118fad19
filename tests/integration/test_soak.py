"""The soak test itself: a few configurations agree, and wrong ones fail with a name."""

from dataclasses import replace

import pytest
import torch

from tests.soak.configuration import AXES, SHARDED_EVERY, Configuration, draw
from tests.soak.verdict import AGREES, FAILED, NOT_RUNNABLE, REFUSED, isolated

USUAL = Configuration(1, 0, max_steps=5)


@pytest.mark.parametrize(
    ("one", "verdict"),
    [
        (
            replace(
                USUAL,
                precision="bf16-true",
                accumulation="2",
                model="plain",
                segments=1,
                secant=True,
                layers=True,
            ),
            AGREES,
        ),
        (
            replace(
                USUAL,
                precision="bf16-mixed",
                accumulation="3",
                loss="user",
                reference="file",
                secant=True,
                segments=4,
            ),
            AGREES,
        ),
        (replace(USUAL, strategy="ddp", model="cnn"), AGREES),
        (replace(USUAL, live_epochs="doubling", live_losses=True, every_step=True), AGREES),
        (replace(USUAL, model="gan", max_steps=-1, loss="user", limit_train_batches=0.4), AGREES),
        # a probe between two steps of one batch is completed inside training_step and its autocast
        (
            replace(
                USUAL,
                precision="bf16-mixed",
                model="critic",
                max_steps=-1,
                loss="user",
                limit_train_batches=0.4,
            ),
            AGREES,
        ),
        (replace(USUAL, optimizer="lbfgs"), REFUSED),
        (replace(USUAL, precision="16-mixed", optimizer="ngn"), NOT_RUNNABLE),
    ],
    ids=str,
)
def test_verdicts(one, verdict):
    found, said = isolated(one, 60)
    assert found == verdict, said


def test_a_corrupted_row_is_a_failure():
    def corrupt(run):
        changed = run.table[1].with_values(inner_product=run.table[1].inner_product * 1.001)
        return replace(run, table=run.table.merged([changed]))

    verdict, said = isolated(USUAL, 60, corrupt)
    assert verdict == FAILED
    assert "step 1, inner_product" in said


def test_a_missing_row_is_a_failure():
    def corrupt(run):
        return replace(run, table=type(run.table)(probe for probe in run.table if probe.step != 2))

    assert isolated(USUAL, 60, corrupt)[0] == FAILED


@pytest.mark.slow
def test_a_hang_is_a_failure():
    def corrupt(run):
        while True:
            torch.ones(1)

    verdict, said = isolated(USUAL, 5, corrupt)
    assert verdict == FAILED
    assert "hung" in said


def test_two_hundred_deal_out_every_value():
    drawn = [draw(1, number) for number in range(200)]
    assert drawn == [draw(1, number) for number in range(200)]
    for axis, choices in AXES.items():
        assert set(choices) <= {getattr(one, axis) for one in drawn}, axis
    assert sum(one.strategy == "fsdp2" for one in drawn) == len(range(7, 200, SHARDED_EVERY))

"""Words for numbers over a hyper-parameter: turns, tendencies; the shared folder; refusals."""

import argparse
from pathlib import Path

import pytest

from demos.experiment import Options
from demos.sweep import course, epochs, judged, listed, settled, sweep, tendency, tends, turns
from lightning_landscape import load
from lightning_landscape.reporting.compare import compare


@pytest.mark.parametrize(
    ("values", "up", "down"),
    [
        ([1, 3, 2], True, False),
        ([3, 1, 2], False, True),
        ([1, 2, 3], False, False),
        ([1, 3, 0.5, 2], False, False),
        ([1, 1, 1], False, False),
        ([1, 2, 1.9, 3, 2], True, False),
        ([4.25, 4.26, 3.07, 2.36, 0.07], False, False),  # nor is a rise by a quarter of a per cent
        (
            [3.11, 3.04, 2.8, 3.17, 2.5, 1.8],
            False,
            False,
        ),  # a largest value inside alone is no rise
        ([0, 0, 0, 0], None, None),
        ([1, 2], None, None),
        ([1, None, 2], None, None),
        ([0, 3e-7, 0], None, None),
    ],
)
def test_turns(values, up, down):
    assert turns(values, 1) is up
    assert turns(values, -1) is down


def test_tendency_is_the_share_of_rising_pairs_less_that_of_falling_ones():
    assert tendency([1, 2, 3]) == 1
    assert tendency([3, 2, 1]) == -1
    assert tendency([1, 3, 2]) == pytest.approx(1 / 3)
    assert tendency([2, 2, 2]) == 0
    assert tendency([1, None]) is None


def test_tends():
    assert tends([4, 3, 2, 1], -1) is True
    assert tends([4, 3, 2, 1], 1) is False
    assert tends([4, 0, 0, 0], -1) is False  # one value makes no tendency
    assert tends([4e-7, 2e-7, 0, 0], -1) is None
    assert tends([1.0, None], 1) is None


def test_only_the_small_setting_asks_for_the_full_one():
    assert [judged(holds, full=False) for holds in (True, False, None)] == [
        "seen",
        "not seen",
        "needs --full",
    ]
    assert [judged(holds, full=True) for holds in (True, False, None)] == [
        "seen",
        "not seen",
        "not seen",
    ]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1, 5, 2], "rises up to 20, then falls"),
        ([5, 1, 2], "falls as far as 20, then rises"),
        ([1, 2, 3], "rises throughout"),
        ([3, 2, 2], "falls, with exceptions"),
        ([1.0, 0.98, 1.03], "is between 0.98 and 1.03"),
        ([2, 1, 3], "falls as far as 20, then rises"),
        ([0, 0, 0], "is 0 throughout"),
        ([0, 1e-6, 0], "is 0 but for rounding"),
        ([0, None, 0], "is not known everywhere"),
    ],
)
def test_course_in_words(values, said):
    assert course([10, 20, 30], values) == said


def test_numbers_are_listed_with_their_keys():
    assert listed([16, 32], [0.12345, None]) == "16: 0.123, 32: none"


def options(full=False, root=None, epochs=None):
    setting = "full" if full else "small"
    return Options(setting, Path("runs/x") / setting, (0,), root, argparse.Namespace(epochs=epochs))


def test_every_set_of_images_and_length_has_its_folder():
    root = Path("files")
    settings = [
        options(),
        options(root=root),
        options(epochs=3),
        options(root=root, epochs=3),
        options(True, root),
    ]
    assert len({settled(given, "files").out for given in settings}) == 5
    with pytest.raises(
        SystemExit,
        match="found --full without --root; add --root DIR, a folder with the files of CIFAR-10",
    ):
        settled(options(full=True), "the files of CIFAR-10")


def test_epochs_are_as_told_or_of_the_setting():
    assert epochs(options(), 28, 600, 1500) == 21
    assert epochs(options(), 900, 600, 1500) == 1
    assert epochs(options(full=True), 28, 600, 1500) == 1500
    assert epochs(options(full=True, epochs=2), 28, 600, 1500) == 2


def test_a_sweep_has_the_numbers_of_compare_and_of_every_seed(grid):
    runs = [load(path) for path in sorted(grid.rglob("landscape"))]
    found = sweep(runs, "width")
    assert found.comparison == compare(runs, "width")
    rows = list(found.rows(kind="MLP"))
    assert len(rows) == len(found.keys) + len(runs)
    assert [row["seed"] for row in rows[: len(found.keys)]] == ["all"] * len(found.keys)
    for key, worst in zip(found.keys, found.values("beta at 1"), strict=True):
        alone = [group.beta_min[1] for _, group in found.seeds if group.key == key]
        assert len(alone) == 2
        assert worst == max(alone)  # the smallest β over all seeds is the largest of theirs

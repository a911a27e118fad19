"""Which of many alike are slow tests: `make test` runs some of them, `make test-slow` the others."""

import pytest


def some(values, every):
    """Return parameters of which one in so many is run by ``make test``.

    Args:
        values: for ``pytest.mark.parametrize``; a tuple is one of several parameters.
        every: 1 for all.
    """
    marks = ((pytest.mark.slow,) if place % every else () for place in range(len(values)))
    return [
        pytest.param(*(v if isinstance(v, tuple) else (v,)), marks=m)
        for v, m in zip(values, marks, strict=True)
    ]

"""Mark most of many similar tests as slow: `make test` runs some, `make test-slow` the others."""

import pytest


def some(values, every):
    """Return parameters; ``make test`` runs one in ``every``.

    Args:
        values: for ``pytest.mark.parametrize``; a tuple is one of several parameters.
        every: 1 for all.
    """
    values = list(values)
    marks = ((pytest.mark.slow,) if place % every else () for place in range(len(values)))
    return [
        pytest.param(*(v if isinstance(v, tuple) else (v,)), marks=m)
        for v, m in zip(values, marks, strict=True)
    ]

"""The entries of the theorems in ``summary.json``, and the sentences of the verdict on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lightning_landscape.bounds import Certificate, Terms, in_force
from lightning_landscape.reporting.fidelity import infidelity, is_faithful
from lightning_landscape.reporting.numbers import number, of_the_drop, shown

TERMS = {
    "initial_distance": ("the initial distance", "which more steps shrink"),
    "step_size_noise": ("step-size noise", ""),
    "neighbourhood": (
        "β σ²",
        "which no step size shrinks; larger batches, or a model that fits every mini-batch "
        "better, do",
    ),
}
"""Name of each part of a bound, and advice how to shrink it.

The advice on step-size noise depends on the theorem, so it comes from the certificate.
"""


def entries(
    certificates: Sequence[Certificate], drop: float | None, run: dict[str, Any]
) -> dict[str, Any]:
    """Return the ``bounds`` part of the summary: one entry per theorem, by its key.

    Args:
        certificates: the result of `certify` for the run.
        drop: f(x_0) − f(x_p); None if it was not measured.
        run: the ``run`` part of the summary.
    """
    found = {certificate.theorem: _entry(certificate, drop) for certificate in certificates}
    if not is_faithful(run, drop):
        # The numbers come from replays that differ from training, so nothing is proved.
        for entry in found.values():
            entry["reason"] = f"{infidelity(run)}; {entry['reason']}"
            entry["status"] = "estimate" if entry["status"] == "proved" else entry["status"]
    return found


def _entry(certificate: Certificate, drop: float | None) -> dict[str, Any]:
    value = number(certificate.value)
    return {
        "title": certificate.title,
        "value": value,
        "status": certificate.status,
        "applies": certificate.applies,
        "reason": certificate.reason,
        "alpha": number(certificate.alpha),
        "beta": number(certificate.beta),
        "constants": {name: number(constant) for name, constant in certificate.constants.items()},
        "terms": _terms(certificate.terms),
        "limit": number(certificate.limit),
        "measured": number(certificate.measured),
        "informativeness": number(value / drop)
        if value is not None and drop is not None and drop > 0
        else None,
    }


def _terms(terms: Terms | None) -> dict[str, float | None]:
    return {name: number(getattr(terms, name)) if terms else None for name in TERMS}


def theory_sentences(
    certificates: Sequence[Certificate], run: dict[str, Any], drop: float | None
) -> str:
    """Return sentences on the best bound of a theorem and on the certificate of the trajectory.

    Args:
        certificates: the result of `certify` for the run.
        run: the ``run`` part of the summary.
        drop: f(x_0) − f(x_p); None if it was not measured.
    """
    if not is_faithful(run, drop):
        # Nobody should act on numbers from replays that differ from training.
        return ""
    best = in_force(certificates)
    by_key = {certificate.theorem: certificate for certificate in certificates}
    trajectory = by_key["trajectory"]
    # The certificate of the trajectory is no theorem on the method; it has its own sentence below.
    if best is None or best is trajectory:
        said = f" No theorem applies: {by_key[own_theorem(run)].reason}."
    else:
        said = (
            f" Theory ({best.title}) bounds the smallest expected gap f(x_k) − f(x_p) by "
            f"{shown(best.value)}. {_worth(best, drop)}"
        )
    if trajectory.applies:
        said += (
            " The certificate of this trajectory bounds the mean gap over its steps by "
            f"{shown(trajectory.value)} (measured: {shown(trajectory.measured)}). "
            f"{_worth(trajectory, drop)}"
        )
    return said


def own_theorem(run: dict[str, Any]) -> str:
    """Return the key of the theorem for the optimizer of the run; without one, that of SGD."""
    own = {
        "SPSMax": "sps_max",
        "DecSPS": "dec_sps",
        "NGN": "ngn",
        "AdaGradNormMax": "adagrad_norm_max",
    }
    return own.get(run["optimizer"]["class"], "sgd")


def _worth(certificate: Certificate, drop: float | None) -> str:
    """Return sentences: whether a bound is informative, its largest part, how to shrink that."""
    assert certificate.value is not None
    if drop is None:
        return "The drop f(x_0) − f(x_p) to compare this bound with was not measured."
    if drop <= 0:
        return "This bound is vacuous, because training did not lower the loss."
    share = certificate.value / drop
    word = "informative" if share < 1 else "vacuous"
    return f"That is {of_the_drop(share)}, so the bound is {word}.{_dominant(certificate)}"


def _dominant(certificate: Certificate) -> str:
    terms = certificate.terms
    # Sharper bounds have negative parts, so percentages are of the positive parts.
    total = sum(max(getattr(terms, name), 0.0) for name in TERMS)
    if terms is None or not 0 < total < math.inf:
        return ""
    what, advice = TERMS[terms.dominant]
    advice = advice or certificate.noise_remedy
    if certificate.remedy and terms.dominant == "neighbourhood":
        advice = (
            "because the step size rules out the pair with the smallest β/δ, which "
            f"{certificate.remedy} would allow"
        )
    percent = 100 * getattr(terms, terms.dominant) / total
    return f" {percent:.0f} % of it is {what}{advice and f', {advice}'}."

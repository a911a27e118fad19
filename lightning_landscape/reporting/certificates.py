"""The theorems in ``summary.json``: each with a value and its assumptions, or the reason why it has none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lightning_landscape.bounds import Certificate, Terms, in_force
from lightning_landscape.reporting.fidelity import infidelity, is_faithful
from lightning_landscape.reporting.numbers import number, shown

TERMS = {
    "initial_distance": ("the distance of the start", "which more steps shrink"),
    "step_size_noise": ("the noise of the step size", ""),
    "neighbourhood": (
        "β σ²",
        "which no step size shrinks; larger batches, or a model that fits every mini-batch better, do",
    ),
}
"""What each part of a bound is, and what can be done about it; of the noise of the step size every theorem says that itself"""


def entries(
    certificates: Sequence[Certificate], drop: float | None, run: dict[str, Any]
) -> dict[str, Any]:
    """Return ``bounds``: one entry a theorem, by its key; none is proved of a run whose replays are off."""
    found = {certificate.theorem: _entry(certificate, drop) for certificate in certificates}
    if not is_faithful(run, drop):
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
    """Return what theory promises of a run, and what its own trajectory certifies, for a practitioner to act on."""
    if not is_faithful(run, drop):
        return ""  # nothing that follows from these replays is to be acted on
    best = in_force(certificates)
    by_key = {certificate.theorem: certificate for certificate in certificates}
    trajectory = by_key["trajectory"]
    if best is None or best is trajectory:
        said = f" No theorem applies: {by_key[own_theorem(run)].reason}."
    else:
        said = f" Theory ({best.title}) promises an iterate within {shown(best.value)} of f(x_p), {_worth(best, drop)}."
    if trajectory.applies:
        said += (
            f" The certificate of this trajectory bounds the mean gap over its steps, {shown(trajectory.measured)}, by "
            f"{shown(trajectory.value)}, {_worth(trajectory, drop)}."
        )
    return said


def own_theorem(run: dict[str, Any]) -> str:
    """Return the key of the theorem that is about the optimiser in use; plain SGD's for all that have none."""
    own = {
        "SPSMax": "sps_max",
        "DecSPS": "dec_sps",
        "NGN": "ngn",
        "AdaGradNormMax": "adagrad_norm_max",
    }
    return own.get(run["optimizer"]["class"], "sgd")


def _worth(certificate: Certificate, drop: float | None) -> str:
    """Say whether a bound is informative, which part of it is the largest, and what would make it smaller."""
    assert certificate.value is not None
    if drop is None:
        return "what training achieved was not measured to compare it with"
    if drop <= 0:
        return "vacuous, because training achieved no drop"
    share = certificate.value / drop
    return f"{share:.2g} of the drop: {'informative' if share < 1 else 'vacuous'}{_dominant(certificate)}"


def _dominant(certificate: Certificate) -> str:
    terms = certificate.terms
    total = sum(max(getattr(terms, name), 0.0) for name in TERMS)
    if terms is None or not 0 < total < math.inf:
        return ""
    what, advice = TERMS[terms.dominant]
    advice = advice or certificate.noise_remedy
    if certificate.remedy and terms.dominant == "neighbourhood":
        advice = f"because the step rules out the pair with the smallest β/δ, which {certificate.remedy} would allow"
    return (
        f"; {getattr(terms, terms.dominant) / total:.0%} of it is {what}{advice and f', {advice}'}"
    )

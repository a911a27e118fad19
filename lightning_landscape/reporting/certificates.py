"""The theorems in ``summary.json``: each with a value and its assumptions, or the reason why it has none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_landscape.bounds import Certificate, Terms
from lightning_landscape.reporting.numbers import number, shown

TERMS = {
    "initial_distance": ("the distance of the start", "more steps would shrink it"),
    "step_size_noise": ("the noise of the step size", "a smaller or a decreasing step size would shrink it"),
    "neighbourhood": ("β σ²", "no step size shrinks it; larger batches, or a model that fits every mini-batch better, would"),
}
"""What each part of a bound is, and what can be done about it"""

FORCED = "the step size rules out the pair with the smallest β/δ; a smaller one would allow it"


def entries(certificates: Sequence[Certificate], drop: float | None) -> dict[str, Any]:
    """Return ``bounds``: one entry a theorem, by its key."""
    return {certificate.theorem: _entry(certificate, drop) for certificate in certificates}


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
        "informativeness": number(value / drop) if value is not None and drop is not None and drop > 0 else None,
    }


def _terms(terms: Terms | None) -> dict[str, float | None]:
    return {name: number(getattr(terms, name)) if terms else None for name in TERMS}


def theory_sentence(
    best: Certificate | None, certificates: Sequence[Certificate], run: dict[str, Any], drop: float | None
) -> str:
    """Return what theory promises of a run, in one sentence a practitioner can act on."""
    own = next((c for c in certificates if c.theorem == own_theorem(run)), None)
    if best is None or best.value is None or best.terms is None:
        return f" No theorem applies: {own.reason}." if own else ""
    if best.theorem == "trajectory":
        why = f" No theorem on the optimizer applies ({own.reason})." if own else ""
        said = f"{why} The certificate of this trajectory does: it bounds the mean gap over its steps by {best.value:.4g}"
        said += f", and it was {shown(best.measured)}" if best.measured is not None else ""
    else:
        said = f" Theory ({best.title}) promises an iterate within {best.value:.4g} of f(x_p)"
    return f"{said}: {_worth(best.value, drop)}; {_dominant(best.terms, best.forced)}."


def own_theorem(run: dict[str, Any]) -> str:
    """Return the key of the theorem that is about the optimiser in use; plain SGD's for all that have none."""
    own = {"SPSMax": "sps_max", "DecSPS": "dec_sps", "NGN": "ngn", "AdaGradNormMax": "adagrad_norm_max"}
    return own.get(run["optimizer"]["class"], "sgd")


def _worth(value: float, drop: float | None) -> str:
    if drop is None:
        return "what training achieved was not measured to compare it with"
    if drop <= 0:
        return "vacuous, because training achieved no drop"
    return f"{value / drop:.2g} of the drop, {'which is informative' if value < drop else 'which is vacuous'}"


def _dominant(terms: Terms, forced: bool) -> str:
    what, advice = TERMS[terms.dominant]
    if forced and terms.dominant == "neighbourhood":
        advice = FORCED
    total = sum(max(getattr(terms, name), 0.0) for name in TERMS)
    share = f"{getattr(terms, terms.dominant) / total:.0%} of it is " if total > 0 else "most of it is "
    return f"{share}{what}: {advice}"

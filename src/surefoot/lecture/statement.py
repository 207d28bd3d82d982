# ruff: noqa: RUF001 - texts hold mathematics
"""What a claim of the lecture is here: words, formulas, and a check that runs it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

Verdict: TypeAlias = Literal["right", "loose", "approximation", "incomplete", "wrong"]


class Evidence(NamedTuple):
    """What a check found.

    Attributes:
        residual: by how much the exact statement was missed at worst, relative to the scale of what was
            compared; 0 for a bound that was kept.
        findings: what was measured, as sentences for the page.
        shown: whether everything else was seen that the verdict says: counterexamples where the lecture's
            version is wrong, convergence where it is right.
    """

    residual: float
    findings: tuple[str, ...]
    shown: bool = True


Check: TypeAlias = Callable[[np.random.Generator], Evidence]


@dataclass(frozen=True)
class Claim:
    """One statement of the lecture, what is exact about it, and how it is checked.

    Texts may hold formulas between dollar signs (LaTeX) and names of code between backticks.

    Attributes:
        number: its place in the lecture.
        title: a few words.
        formula: the lecture's formula, LaTeX.
        said: the lecture's claim in a sentence.
        exact_formula: the exact statement, LaTeX.
        exactly: the exact statement in a sentence.
        verdict: on the lecture's version.
        condition: what the verdict depends on, to be read behind it; may be empty.
        computed_by: the functions that the check measures with.
        check: from a generator of random cases to what was found.
        tolerance: the largest residual that is still rounding (or the order that was neglected).
    """

    number: int
    title: str
    formula: str
    said: str
    exact_formula: str
    exactly: str
    verdict: Verdict
    condition: str
    computed_by: tuple[Callable[..., Any], ...]
    check: Check
    tolerance: float = 1e-10

    @property
    def functions(self) -> tuple[str, ...]:
        """The names of `computed_by`, with their modules."""
        return tuple(name_of(function) for function in self.computed_by)

    def run(self, seed: int) -> Result:
        """The claim's check on cases drawn from `seed` and its number: the same whatever ran before."""
        return self.judge(self.check(np.random.default_rng([seed, self.number])))

    def judge(self, evidence: Evidence) -> Result:
        """What the evidence says of the exact statement."""
        return Result(self, evidence, bool(evidence.shown) and evidence.residual <= self.tolerance)


class Result(NamedTuple):
    """A claim that was run.

    Attributes:
        claim: the claim.
        evidence: what its check found.
        holds: whether the exact statement, and everything else that the verdict says, was confirmed.
    """

    claim: Claim
    evidence: Evidence
    holds: bool

    def as_dict(self) -> dict[str, Any]:
        """The result as `surefoot lecture --json` prints it."""
        return {
            "number": self.claim.number,
            "claim": self.claim.title,
            "verdict": self.claim.verdict,
            "residual": float(self.evidence.residual),
            "tolerance": self.claim.tolerance,
            "holds": self.holds,
        }


def name_of(function: Callable[..., Any]) -> str:
    """`module.function` as it can be imported."""
    return f"{function.__module__}.{function.__qualname__}"


def worst(values: Iterable[Any]) -> float:
    """The largest entry of all the given numbers and arrays; inf where one is NaN, so that no check passes on it."""
    each = np.array([float(np.max(value)) for value in values])
    return math.inf if np.isnan(each).any() else float(np.max(each, initial=0.0))


def excess(smaller: Any, larger: Any) -> float:
    """By how much `smaller` is above `larger` at worst, 0 where it nowhere is; inf where one is NaN."""
    smaller, larger = np.broadcast_arrays(np.asarray(smaller, np.float64), np.asarray(larger, np.float64))
    if np.isnan(smaller).any() or np.isnan(larger).any():
        return math.inf
    # inf <= inf is kept, and inf - inf would be NaN.
    above = smaller > larger
    return float(np.max(smaller[above] - larger[above], initial=0.0))


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: Any, digits: int = 3) -> str:
    """A number for reading: `digits` significant figures, powers of ten where it is very large or very small."""
    value = float(value)
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".split("e")[1])
    if -4 <= exponent < 6:
        decimals = max(digits - 1 - exponent, 0)
        text = f"{value:,.{decimals}f}"
        if "." in text:
            text = text.rstrip("0").rstrip(".")
        return text.replace("-", "−").replace(",", "\u202f")
    mantissa = f"{value:.{digits - 1}e}".split("e")[0].rstrip("0").rstrip(".").replace("-", "−")
    power = f"10{str(exponent).translate(_SUPERSCRIPT)}"
    return {"1": power, "−1": f"−{power}"}.get(mantissa, f"{mantissa}\u202f×\u202f{power}")

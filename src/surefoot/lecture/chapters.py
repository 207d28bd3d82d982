"""The order of the lecture: chapters, their words, and which claims and figures belong to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from surefoot.lecture import constraint, drift, figures, guarantees, iteration, region, step_figures
from surefoot.lecture.figures import Drawn
from surefoot.lecture.statement import Claim


class Chapter(NamedTuple):
    """A part of the page.

    Attributes:
        anchor: its name in addresses.
        title: its heading.
        text: paragraphs before the claims; formulas between dollar signs, code between backticks.
        claims: in the lecture's order.
        figures: what draws its figures, before the claims.
    """

    anchor: str
    title: str
    text: tuple[str, ...]
    claims: tuple[Claim, ...]
    figures: tuple[Callable[[np.random.Generator], Drawn], ...]


CHAPTERS = (
    Chapter(
        "surrogate",
        "From policy iteration to a surrogate",
        (
            "Policy iteration evaluates a policy and then takes the best action in every state. The policy gradient "
            "evaluates it and moves a little towards better actions. What both need is the advantage, and what both "
            "rest on is one identity: the gain of a new policy is the old policy's advantage, averaged over the states "
            "that the new policy meets.",
            "Those states are not known before the new policy has been run. Replacing them by the old policy's gives "
            "an objective that can be computed, the surrogate $L$. The rest of the lecture asks when that is allowed.",
        ),
        iteration.CLAIMS,
        (figures.soft_to_greedy,),
    ),
    Chapter(
        "drift",
        "How far the states drift",
        (
            "The surrogate is wrong only where the state laws differ: its error is $\\langle d' - d, \\bar A "
            "\\rangle/(1-\\gamma)$. So the question is how far $p'_t$ can be from $p_t$ when the policies are close "
            "in every state.",
            "The lecture argues by mistakes: as long as the new policy has not done anything that the old one would "
            "not have done, both are in the same place. That gives the right bounds. The mixture by which it is "
            "written down exists for deterministic policies only; for others its place is taken by the overlap of "
            "the two laws.",
        ),
        drift.CLAIMS,
        (figures.drift,),
    ),
    Chapter(
        "bounds",
        "What a step is sure to gain",
        (
            "A bound on the drift becomes a lower bound on the gain: the surrogate's promise, less what the drift can "
            "take from it. The lecture's own bound is true for rewards of one sign, and far too large to say anything. "
            "The table measures all bounds of `surefoot.bounds` on the same steps: what they subtract, in multiples of "
            "the error that the surrogate really made, and how often they prove that the policy improved.",
        ),
        guarantees.CLAIMS,
        (figures.gain_and_bounds,),
    ),
    Chapter(
        "multiplier",
        "The constraint and its multiplier",
        (
            "So the surrogate is to be maximised while the policy stays close, and closeness is measured by KL. One "
            "way is a Lagrangian whose multiplier is adjusted until the constraint is just met. For tables the inner "
            "problem has a closed form, the softened policy $\\pi' \\propto \\pi e^{A/\\lambda}$, so that every "
            "statement about the outer loop can be checked without an inner loop's errors.",
        ),
        constraint.CLAIMS,
        (step_figures.multipliers,),
    ),
    Chapter(
        "trust-region",
        "Inside the region: from the gradient to TRPO",
        (
            "The other way keeps the constraint and simplifies what is inside: the objective to a line, the KL to a "
            "quadratic. A line in a ball gives the plain gradient step; a line in the ellipse of the KL gives the "
            "natural gradient. The lecture's formula for the length of that step has $F$ where $F^{-1}$ belongs.",
            "TRPO computes $F^{-1} g$ by conjugate gradients, scales it to the radius, and then shortens the step "
            "until the true KL is inside the region and the true surrogate rises (`surefoot.rules.trpo.TRPO`). The "
            "last part is what turns two local models into a step that can be trusted.",
        ),
        region.CLAIMS,
        (
            figures.linear_model,
            step_figures.ball_and_ellipse,
            step_figures.step_lengths,
            step_figures.conjugate_gradient_residuals,
        ),
    ),
)
"""The lecture, in order."""

CLAIMS: tuple[Claim, ...] = tuple(claim for chapter in CHAPTERS for claim in chapter.claims)
"""Every claim, by rising number."""

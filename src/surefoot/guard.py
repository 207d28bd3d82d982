"""The guard: taking back an update that did harm, and stepping more carefully after it.

An update that lowered the return shows it in the next batch: the upper end of its realised gain is below 0. Then
the policy before it comes back, with the rule's memory of then, the batch that the worse policy collected is left
unused, and the radius is halved. It grows back slowly, as the harm may have been bad luck.
"""

from __future__ import annotations

from typing import TypeVar

import equinox as eqx
import numpy as np

from surefoot.rules import Rule
from surefoot.sampled_certificate import Sums, realised_gain

SHRINK = 0.5
GROWTH = 1.02

AnyRule = TypeVar("AnyRule", bound=Rule)


def careful(rule: AnyRule, share: float) -> AnyRule:
    """The rule with `share` of its trust region.

    Rules with a radius have it times `share`; of others the optimiser's step size times sqrt(share), as the KL
    grows with the square of a step.
    """
    if hasattr(rule, "radius"):
        return eqx.tree_at(lambda r: r.radius, rule, np.asarray(rule.radius) * share)
    return eqx.tree_at(lambda r: r.step_size, rule, np.asarray(getattr(rule, "step_size")) * np.sqrt(share))  # noqa: B009


def did_harm(before: Sums, after: Sums, confidence: float) -> bool:
    """Whether the realised gain is below 0 with this one-sided confidence; never where it cannot be said."""
    upper = realised_gain(before, after, 2 * confidence - 1).upper
    return upper is not None and upper < 0


def next_share(share: float, *, undone: bool) -> float:
    """The share of the radius for the next update."""
    return share * SHRINK if undone else min(1.0, share * GROWTH)

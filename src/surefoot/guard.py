"""The guard: taking back an update that did harm, and stepping more carefully after it.

An update that lowered the return shows it in the next batch: the upper end of its realised gain is below 0. Then
the policy before it comes back, with the rule's memory of then, the batch that the worse policy collected is left
unused, and the radius is halved. It grows back slowly, as the harm may have been bad luck.
"""

from __future__ import annotations

from typing import Any, TypeVar

import equinox as eqx

from surefoot.errors import SettingError
from surefoot.rules import Rule
from surefoot.sampled_certificate import Sums, realised_gain

SHRINK = 0.5
# Two taken back in a row cost about seventy updates of smaller steps: harm is dearer than time.
GROWTH = 1.02
# Below this nothing would be learned any more, whatever the batches say.
LEAST = 2.0**-10

AnyRule = TypeVar("AnyRule", bound=Rule)


_LENGTHS = ("radius", "eta", "step_size")


def steerable(rule: Rule) -> bool:
    """Whether the rule has something that says how far it steps."""
    return any(getattr(rule, name, None) is not None for name in _LENGTHS)


def careful(rule: AnyRule, share: Any) -> AnyRule:
    """The rule with `share` of its trust region.

    A radius is taken times `share`; a step size or `eta` times sqrt(share), as the KL grows with the square of a
    step. Rules that only steer towards their radius have both. The share, and the rule's, may be traced. Raises
    SettingError for a rule that has neither.
    """
    if not steerable(rule):
        raise SettingError(f"guard needs a rule with a radius, eta or step_size, but {type(rule).__name__} has none")
    found = [name for name in _LENGTHS if getattr(rule, name, None) is not None]
    lengths = [getattr(rule, name) * (share if name == "radius" else share**0.5) for name in found]
    return eqx.tree_at(lambda r: [getattr(r, name) for name in found], rule, lengths)


def did_harm(before: Sums, after: Sums, confidence: float) -> bool:
    """Whether the realised gain is below 0 with this one-sided confidence; never where it cannot be said."""
    upper = realised_gain(before, after, 2 * confidence - 1).upper
    return upper is not None and upper < 0


def next_share(share: float, *, undone: bool) -> float:
    """The share of the radius for the next update."""
    return max(share * SHRINK, LEAST) if undone else min(1.0, share * GROWTH)

"""Annealing: towards its end a run takes smaller steps.

A step from samples is part signal and part noise. Steps of one size keep moving a policy that has nothing left to
learn, the mean square distance that they hold it at from where it should be growing with their size; shrinking them
lets it settle (Robbins and Monro 1951; for policies the usual decay of the step size to 0, as in Schulman et al. 2017).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from surefoot import config
from surefoot.guard import AnyRule, careful, steerable


def remaining(run: config.Run, steps: Any) -> Any:
    """The share of the trust region after so many environment steps, in (0, 1]: 1 for the first `anneal_from` of the
    run, then on a line to `anneal` at its end. Traced where the settings or the steps are."""
    xp = jnp if isinstance(steps, jax.Array) else np
    late = (steps / run.steps - run.anneal_from) / (1 - run.anneal_from)
    return 1 - (1 - run.anneal) * xp.clip(late, 0, 1)


def annealed(rule: AnyRule, share: Any) -> AnyRule:
    """The rule with this share of its trust region, which may be traced; as it is where it has nothing to shorten."""
    return careful(rule, share) if steerable(rule) else rule

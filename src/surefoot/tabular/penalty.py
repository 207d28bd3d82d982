"""The KL-penalised improvement step in closed form, and the Lagrangian's dual, for one or many states.

maximise over pi' in each state: sum_a pi'(a) A(a) - lambda KL, with rows [..., A] of advantages and of the
old policy's probabilities. What the inner loops of the sampled rules approach is here exact.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from surefoot.divergences import kl
from surefoot.errors import SettingError, shown

Array = np.ndarray


def softened(old: Float[Array, "... A"], advantage: Float[Array, "... A"], multiplier: float) -> Float[Array, "... A"]:
    """argmax of E_pi' A - lambda KL(pi' || pi): pi' proportional to pi exp(A / lambda).

    For lambda = 0 its limit: the best of the old policy's actions, ties keeping their proportions. This is
    the natural gradient's step of length 1/lambda (Kakade 2001) and the mirror step of Peters et al. 2010.
    Raises SettingError for a negative lambda.
    """
    if multiplier < 0 or np.isnan(multiplier):
        raise SettingError(f"multiplier must be a number, at least 0, but {shown(multiplier)} came")
    taken = old > 0
    best = np.max(np.where(taken, advantage, -np.inf), axis=-1, keepdims=True)
    below = np.where(taken, advantage - best, -np.inf)
    # Divided only where below its state's best action: 0/0 at the best one is a ratio of 1.
    with np.errstate(divide="ignore", over="ignore"):
        ratio = np.where(
            below == 0, 1.0, np.exp(below / multiplier if multiplier > 0 else np.full_like(below, -np.inf))
        )
    weight = old * ratio
    return weight / weight.sum(axis=-1, keepdims=True)


def softened_value(
    old: Float[Array, "... A"], advantage: Float[Array, "... A"], multiplier: float
) -> Float[Array, ...]:
    """max of E_pi' A - lambda KL(pi' || pi) = lambda log E_pi exp(A / lambda), for lambda > 0."""
    if not multiplier > 0:
        raise SettingError(f"multiplier must be a number, above 0, but {shown(multiplier)} came")
    taken = old > 0
    best = np.max(np.where(taken, advantage, -np.inf), axis=-1, keepdims=True)
    exponent = np.where(taken, advantage - best, 0) / multiplier
    return best[..., 0] + multiplier * np.log(np.sum(old * np.exp(exponent), axis=-1))


def mode_covering(old: Float[Array, " A"], advantage: Float[Array, " A"], multiplier: float) -> Float[Array, " A"]:
    """argmax of E_pi' A - lambda KL(pi || pi'): pi' = lambda pi / (nu - A) with nu > max A over pi's support.

    nu by bisection, so that pi' sums to 1. An action outside the support that is better than nu takes the
    mass that the others leave at nu = its advantage. For one state; lambda > 0.
    """
    if not multiplier > 0:
        raise SettingError(f"multiplier must be a number, above 0, but {shown(multiplier)} came")
    taken = old > 0
    best = float(np.max(advantage[taken]))
    # At nu = best + lambda every term is at most pi, so the sum is at most 1; near best it is above.
    low, high = best, best + multiplier

    def mass(nu: float) -> float:
        return float(np.sum(multiplier * old[taken] / (nu - advantage[taken])))

    while True:
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if mass(middle) > 1 else (low, middle)
    new = np.zeros_like(old, np.float64)
    outside = float(np.max(advantage[~taken])) if not taken.all() else -np.inf
    nu = max(high, outside)
    new[taken] = multiplier * old[taken] / (nu - advantage[taken])
    if outside > high:
        better = ~taken & (advantage == outside)
        new[better] = (1 - new.sum()) / better.sum()
    return new / new.sum()


class Dual(NamedTuple):
    """The multiplier's way to its fixed point.

    Attributes:
        multipliers: lambda before each iteration and after the last.
        kls: KL(pi' || pi) at each of them, nats, mean over states.
        probabilities: pi' at the last.
    """

    multipliers: Float[Array, " n"]
    kls: Float[Array, " n"]
    probabilities: Float[Array, "... A"]


def dual_ascent(
    old: Float[Array, "... A"],
    advantage: Float[Array, "... A"],
    radius: float,
    *,
    weight: Float[Array, ...] | float = 1.0,
    start: float = 1.0,
    eta: float | None = None,
    iterations: int = 100,
) -> Dual:
    """max E A subject to mean KL(pi' || pi) <= radius, by exact inner steps and a multiplier that follows KL.

    With `eta`: lambda <- max(0, lambda + eta (KL - radius)), stable for eta < 2 lambda^3 / Var_pi' A at the
    fixed point. Without: lambda <- lambda sqrt(KL / radius), which needs no step size; where even the
    greedy policy stays inside the radius it falls to 0.

    Arguments:
        weight: of each state, summing to 1; 1 for a single row [A].
    """
    multiplier, multipliers, kls = start, [], []
    for _ in range(iterations + 1):
        new = softened(old, advantage, multiplier)
        divergence = float(np.sum(weight * kl(new, old)))
        multipliers.append(multiplier)
        kls.append(divergence)
        if eta is None:
            multiplier = multiplier * float(np.sqrt(divergence / radius))
        else:
            multiplier = max(0.0, multiplier + eta * (divergence - radius))
    return Dual(np.array(multipliers), np.array(kls), softened(old, advantage, multipliers[-1]))

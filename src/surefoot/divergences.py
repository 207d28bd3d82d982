"""Divergences between finite distributions, in float64 NumPy: what the exact engine measures movement with.

Every function takes probabilities [..., K] and works along the last axis. Supports may differ: the result
may be infinite and is never NaN. Divergences are in nats, total variation is half the L1 distance.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Array = np.ndarray


def total_variation(p: Float[Array, "... K"], q: Float[Array, "... K"]) -> Float[Array, ...]:
    """TV(p, q) = half of sum |p - q|, in [0, 1]."""
    return np.minimum(0.5 * np.sum(np.abs(np.asarray(p) - q), axis=-1), 1.0)


def kl(p: Float[Array, "... K"], q: Float[Array, "... K"]) -> Float[Array, ...]:
    """KL(p || q) in nats; inf where q is 0 and p is not.

    Summed as p (u + e^-u - 1) with u = log(p/q), whose terms are never negative, plus the mass that q has
    where p has none: rounding cannot leave a small divergence below 0.
    """
    p, q = np.broadcast_arrays(np.asarray(p, np.float64), np.asarray(q, np.float64))
    both = (p > 0) & (q > 0)
    u = np.log(np.where(both, p, 1)) - np.log(np.where(both, q, 1))
    # Far below 0 the exponential would overflow, and there is nothing to cancel.
    excess = np.where(u > -1, p * np.maximum(u + np.expm1(-np.maximum(u, -1)), 0), p * (u - 1) + q)
    return np.sum(np.where(both, excess, np.where(p > 0, np.inf, q)), axis=-1)


def pinsker(kl: Float[Array, ...] | float) -> Float[Array, ...]:
    """TV <= sqrt(KL / 2) (Pinsker 1964). Beyond KL = 2 it says nothing."""
    return np.sqrt(np.asarray(kl, np.float64) / 2)


def bretagnolle_huber(kl: Float[Array, ...] | float) -> Float[Array, ...]:
    """TV <= sqrt(1 - exp(-KL)) (Bretagnolle & Huber 1979), below 1 for every finite KL.

    Weaker than Pinsker's inequality up to KL = 1.593624, stronger beyond.
    """
    return np.sqrt(-np.expm1(-np.asarray(kl, np.float64)))

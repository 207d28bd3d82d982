"""How far the law of states moves when the policy does: mixtures, couplings, overlap.

The lecture's argument in numbers. Two policies that agree with probability 1 - e in every state lead to
state laws that agree with probability at least (1 - e)^t after t steps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from surefoot.divergences import kl, total_variation
from surefoot.tabular.evaluation import propagate, resolvent, state_laws, through_time
from surefoot.tabular.model import MDP, PolicyLike

Array = np.ndarray


class StateShift(NamedTuple):
    """TV(p_t, p'_t) for t = 0, …, steps and what bounds it; arrays [steps + 1].

    tv <= overlap <= min(mean_tv, geometric), geometric <= linear; tv <= chain_kl.

    Attributes:
        tv: TV(p_t, p'_t).
        overlap: 1 - m_t, with m_t the mass that the two laws share when every step keeps min(pi, pi').
        mean_tv: min(1, sum over k < t of E_{p_k} TV(pi, pi')).
        geometric: 1 - (1 - e)^t with e the largest TV(pi, pi') over states.
        linear: e t, the lecture's bound for half the L1 distance.
        chain_kl: min(1, sqrt(1/2 sum over k < t of E_{p_k} KL(old || new))).
    """

    tv: Float[Array, " steps+1"]
    overlap: Float[Array, " steps+1"]
    mean_tv: Float[Array, " steps+1"]
    geometric: Float[Array, " steps+1"]
    linear: Float[Array, " steps+1"]
    chain_kl: Float[Array, " steps+1"]


def state_shift(mdp: MDP, old: PolicyLike, new: PolicyLike, steps: int | None = None) -> StateShift:
    """The shift of the state law after t = 0, …, `steps` transitions (20, or T with a horizon)."""
    if steps is None:
        steps = 20 if mdp.horizon is None else mdp.horizon
    before, after = mdp.probabilities(old, "old"), mdp.probabilities(new, "new")
    laws = state_laws(mdp, before, steps)
    old_steps, new_steps = through_time(mdp, before, steps), through_time(mdp, after, steps)
    apart = total_variation(before, after)
    largest = float(apart.max())
    tv_now = np.sum(laws[:-1] * through_time(mdp, apart[..., None], steps)[..., 0], axis=1)
    kl_now = np.sum(zero_times_inf(laws[:-1], kl(old_steps, new_steps)), axis=1)
    t = np.arange(steps + 1)
    return StateShift(
        tv=total_variation(laws, state_laws(mdp, after, steps)),
        overlap=np.clip(1 - propagate(mdp, np.minimum(old_steps, new_steps)).sum(axis=1), 0, 1),
        mean_tv=np.minimum(1, _sum_before(tv_now)),
        geometric=1 - (1 - largest) ** t,
        linear=largest * t,
        chain_kl=np.minimum(1, np.sqrt(_sum_before(kl_now) / 2)),
    )


def _sum_before(each: Float[Array, " steps"]) -> Float[Array, " steps+1"]:
    return np.concatenate([[0.0], np.cumsum(each)])


def zero_times_inf(weight: Array, value: Array) -> Array:
    """weight * value with 0 * inf = 0."""
    return weight * np.where(weight > 0, value, 0)


def overlap(mdp: MDP, old: PolicyLike, new: PolicyLike) -> float:
    """(1-g) sum mu (I - g sum_a min(pi,pi') P)^-1: the mass of d that the two policies are sure to share.

    At most 1 - TV(d, d'). For an MDP without horizon.
    """
    shared = np.minimum(mdp.probabilities(old, "old"), mdp.probabilities(new, "new"))
    solve, _ = resolvent(mdp.under(shared), mdp.discount)
    return float((1 - mdp.discount) * mdp.start @ solve(np.ones(mdp.states)))


def mistake_law(mdp: MDP, old: PolicyLike, new: PolicyLike, mistake: float, steps: int) -> Float[Array, "steps+1 S"]:
    """p_mistake of p'_t = (1-e)^t p_t + (1 - (1-e)^t) p_mistake, for t = 0, …, `steps`.

    For a deterministic old policy, from which the new one departs with probability at most e = `mistake`,
    it is a law. For stochastic policies the decomposition need not exist: entries may be negative.
    At t = 0, where its share is 0, it is given as p_0.
    """
    before, after = state_laws(mdp, old, steps), state_laws(mdp, new, steps)
    kept = ((1 - mistake) ** np.arange(steps + 1))[:, None]
    share = np.where(kept < 1, 1 - kept, 1)
    return np.where(kept < 1, (after - kept * before) / share, before)


def maximal_coupling(p: Float[Array, " K"], q: Float[Array, " K"]) -> Float[Array, "K K"]:
    """A joint law of (x, y) with marginals p and q and P(x = y) = 1 - TV(p, q), the largest possible.

    diag(min(p, q)) + (p-q)+ (q-p)+^T / TV (Lindvall 1992, section I.5).
    """
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    apart = float(np.sum(np.maximum(p - q, 0)))
    joint = np.diag(np.minimum(p, q))
    if apart == 0:
        return joint
    return joint + np.outer(np.maximum(p - q, 0), np.maximum(q - p, 0)) / apart


def sample_coupled(
    p: Float[Array, " K"], q: Float[Array, " K"], count: int, rng: np.random.Generator
) -> tuple[Int[Array, " count"], Int[Array, " count"]]:
    """`count` pairs (x, y) from the maximal coupling: x ~ p, y ~ q, equal with probability 1 - TV(p, q)."""
    joint = maximal_coupling(p, q)
    drawn = rng.choice(joint.size, size=count, p=joint.ravel() / joint.sum())
    x, y = np.unravel_index(drawn, joint.shape)
    return x, y

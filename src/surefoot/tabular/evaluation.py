"""What a policy is worth in a finite MDP: values, advantages, visitation, computed and not estimated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
import scipy.sparse as sparse
import scipy.sparse.csgraph
import scipy.sparse.linalg
from jaxtyping import Float

from surefoot.errors import ModelError
from surefoot.tabular.model import MDP, PolicyLike

Array = np.ndarray

_DENSE_UP_TO = 1500
_ROUNDING = 4 * np.finfo(np.float64).eps


class Evaluation(NamedTuple):
    """A policy's account. With a horizon every array has a first axis of T times; V after the last is 0.

    Attributes:
        probabilities: pi(a|s), [S, A] or [T, S, A].
        value: V(s), [S] or [T, S].
        action_value: Q(s, a), [S, A] or [T, S, A].
        advantage: A(s, a) = Q(s, a) - V(s), [S, A] or [T, S, A].
        expected_return: J = <start, V>, not normalised.
        visitation: d, the discounted law of states (and times), [S] or [T, S]; sums to 1.
    """

    probabilities: Array
    value: Array
    action_value: Array
    advantage: Array
    expected_return: float
    visitation: Array


def evaluate(mdp: MDP, policy: PolicyLike) -> Evaluation:
    """Exact evaluation in float64: V = (I - g P_pi)^-1 r_pi and d = (1-g) mu (I - g P_pi)^-1.

    Up to 1,500 states by one dense factorisation; beyond by a Krylov method (BiCGSTAB) whose residual is
    checked, with a sparse factorisation where it fails. With a horizon by backward and forward recursion.
    Raises ModelError for a policy that is none, and for rewards so large that values leave float64.
    """
    probabilities = mdp.probabilities(policy)
    with np.errstate(over="ignore", invalid="ignore"):
        endless = mdp.horizon is None
        found = _evaluate_for_ever(mdp, probabilities) if endless else _evaluate_to_horizon(mdp, probabilities)
    if not np.isfinite(found.action_value).all():
        raise ModelError("reward: values leave float64; scale the rewards down")
    return found


def _evaluate_for_ever(mdp: MDP, probabilities: Float[Array, "S A"]) -> Evaluation:
    step = mdp.under(probabilities)
    solve, solve_transposed = resolvent(step, mdp.discount)
    value = solve(np.sum(probabilities * mdp.reward, axis=1))
    action_value = mdp.reward + mdp.discount * mdp.expected_next(value)
    return Evaluation(
        probabilities=probabilities,
        value=value,
        action_value=action_value,
        advantage=action_value - value[:, None],
        expected_return=float(mdp.start @ value),
        visitation=_visitation(mdp, step, solve_transposed),
    )


def _visitation(mdp: MDP, step: Any, solve_transposed: Callable[[Array], Array]) -> Float[Array, " S"]:
    # Rounding would leave traces in states that are never met, where divergences may be infinite.
    if mdp.discount == 0:
        return mdp.start
    law = np.where(_reachable(mdp.start, step), np.maximum(solve_transposed(mdp.start), 0), 0)
    return law / law.sum()


def _reachable(start: Float[Array, " S"], step: Any) -> Array:
    """Which states are met with positive probability."""
    from_start = sparse.csr_array(start[None] > 0)
    nowhere = sparse.csr_array((len(start) + 1, 1), dtype=bool)
    graph = sparse.hstack([sparse.vstack([sparse.csr_array(step) > 0, from_start]), nowhere], format="csr")
    order = scipy.sparse.csgraph.breadth_first_order(graph, len(start), return_predecessors=False)
    met = np.zeros(len(start) + 1, bool)
    met[order] = True
    return met[:-1]


def _evaluate_to_horizon(mdp: MDP, probabilities: Float[Array, "T S A"]) -> Evaluation:
    action_value = np.empty_like(probabilities)
    value = np.empty(probabilities.shape[:2])
    later = np.zeros(mdp.states)
    for t in reversed(range(len(probabilities))):
        action_value[t] = mdp.reward + mdp.discount * mdp.expected_next(later)
        value[t] = later = np.sum(probabilities[t] * action_value[t], axis=1)
    discounted = mdp.discount ** np.arange(len(probabilities)) / mdp.effective_horizon
    return Evaluation(
        probabilities=probabilities,
        value=value,
        action_value=action_value,
        advantage=action_value - value[..., None],
        expected_return=float(mdp.start @ value[0]),
        visitation=discounted[:, None] * state_laws(mdp, probabilities, len(probabilities) - 1),
    )


def state_laws(mdp: MDP, policy: PolicyLike, steps: int) -> Float[Array, "steps+1 S"]:
    """p_t, the law of the state after t transitions, for t = 0, …, steps; p_0 is the start.

    With a horizon, `steps` is at most T.
    """
    return propagate(mdp, through_time(mdp, mdp.probabilities(policy), steps))


def through_time(mdp: MDP, probabilities: Float[Array, "... S A"], steps: int) -> Float[Array, "steps S A"]:
    """A policy's probabilities at times 0, …, steps - 1."""
    if mdp.horizon is not None:
        return probabilities[:steps]
    return np.broadcast_to(probabilities, (steps, mdp.states, mdp.actions))


def propagate(mdp: MDP, weights: Float[Array, "steps S A"]) -> Float[Array, "steps+1 S"]:
    """u_0 = start, u_{t+1} = u_t sum_a w_t(s,a) P(.|s,a): state laws for w = pi, their overlap for min(pi, pi')."""
    laws = np.empty((len(weights) + 1, mdp.states))
    laws[0] = mdp.start
    for t, weight in enumerate(weights):
        laws[t + 1] = (laws[t][:, None] * weight).ravel() @ mdp.matrix
    return laws


def resolvent(step: Any, discount: float) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """b -> (I - g P)^-1 b and b -> (I - g P^T)^-1 b, for a nonnegative matrix with row sums of at most 1."""
    if step.shape[0] <= _DENSE_UP_TO:
        dense = step.toarray() if sparse.issparse(step) else step
        factors = scipy.linalg.lu_factor(np.eye(len(dense)) - discount * dense)
        return lambda b: scipy.linalg.lu_solve(factors, b), lambda b: scipy.linalg.lu_solve(factors, b, trans=1)
    system = sparse.csr_array(sparse.eye_array(step.shape[0]) - discount * sparse.csr_array(step))
    return lambda b: _solve_sparse(system, b), lambda b: _solve_sparse(system.T.tocsr(), b)


def _solve_sparse(system: Any, b: Array) -> Array:
    """x whose residual is that of rounding, a few units of |x| + |b|, or the best a factorisation gives."""
    x = np.zeros_like(b)
    for _ in range(6):
        residual = b - system @ x
        goal = _ROUNDING * (np.linalg.norm(x) + np.linalg.norm(b))
        if np.linalg.norm(residual) <= goal:
            return x
        # Each pass solves for what the last one left, so no pass has to reach the end of its precision.
        correction, _ = scipy.sparse.linalg.bicgstab(system, residual, rtol=1e-8, atol=goal / 2, maxiter=2000)
        if not np.all(np.isfinite(correction)):
            break
        x = x + correction
    factors = scipy.sparse.linalg.splu(system.tocsc())
    x = factors.solve(b)
    return x + factors.solve(b - system @ x)

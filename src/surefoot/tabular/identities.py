"""The identities behind trust regions, each as the residual that must be 0 but for rounding.

Theory: Kakade & Langford 2002; Schulman et al. 2015. The tolerance is 1e-10 times `MDP.scale`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from surefoot.geometry import surrogate
from surefoot.policy import TabularPolicy
from surefoot.tabular.evaluation import evaluate, state_laws
from surefoot.tabular.model import MDP, PolicyLike
from surefoot.tabular.update import exact_batch, tabular_policy

Array = np.ndarray


def telescoping(mdp: MDP, policy: PolicyLike, steps: int | None = None) -> float:
    """|J - [sum_{t<n} g^t <p_t, r_pi> + g^n <p_n, V>]| after n = `steps` transitions (50, or T with a horizon).

    J = E V(s_0), and what is earned until any time plus the discounted value of where one is then.
    """
    account = evaluate(mdp, policy)
    steps = (50 if mdp.horizon is None else mdp.horizon) if steps is None else steps
    laws = state_laws(mdp, policy, steps)
    earned = np.sum(account.probabilities * mdp.reward, axis=-1)
    weights = mdp.discount ** np.arange(steps)
    until = np.sum(weights * np.sum(laws[:-1] * (earned if mdp.horizon is None else earned[:steps]), axis=1))
    after = account.value if mdp.horizon is None else np.vstack([account.value, np.zeros(mdp.states)])[steps]
    return abs(account.expected_return - until - mdp.discount**steps * float(laws[-1] @ after))


def zero_mean_advantage(mdp: MDP, policy: PolicyLike) -> float:
    """max over states of |sum_a pi(a|s) A(s, a)|."""
    account = evaluate(mdp, policy)
    return float(np.max(np.abs(np.sum(account.probabilities * account.advantage, axis=-1))))


def performance_difference(mdp: MDP, old: PolicyLike, new: PolicyLike) -> float:
    """|J(pi') - J(pi) - <d', Abar>/(1-g)| (Kakade & Langford 2002, lemma 6.1); with a horizon the sum of
    g^t <p'_t, Abar_t>."""
    before, after = evaluate(mdp, old), evaluate(mdp, new)
    expected = np.sum(after.probabilities * before.advantage, axis=-1)
    gain = after.expected_return - before.expected_return
    return abs(gain - mdp.effective_horizon * float(np.sum(after.visitation * expected)))


def performance_difference_with(mdp: MDP, old: PolicyLike, new: PolicyLike, f: Float[Array, "... S"]) -> float:
    """The same difference from any function f of state (and time), [S] or [T, S], in place of V.

    |J(pi') - J(pi) - [<d', E_pi' delta_f> - <d, E_pi delta_f>]/(1-g)| with delta_f = r + g P f - f. What a
    critic that is wrong still gets right.
    """
    before, after = evaluate(mdp, old), evaluate(mdp, new)
    delta = _temporal_difference(mdp, np.asarray(f, np.float64))
    sides = [
        float(np.sum(account.visitation * np.sum(account.probabilities * delta, axis=-1)))
        for account in (after, before)
    ]
    gain = after.expected_return - before.expected_return
    return abs(gain - mdp.effective_horizon * (sides[0] - sides[1]))


def _temporal_difference(mdp: MDP, f: Float[Array, "... S"]) -> Float[Array, "... S A"]:
    if mdp.horizon is None:
        return mdp.reward + mdp.discount * mdp.expected_next(f) - f[:, None]
    f = np.broadcast_to(f, (mdp.horizon, mdp.states))
    later = np.vstack([f[1:], np.zeros(mdp.states)])
    return np.stack(
        [mdp.reward + mdp.discount * mdp.expected_next(n) - now[:, None] for now, n in zip(f, later, strict=True)]
    )


def surrogate_error(mdp: MDP, old: PolicyLike, new: PolicyLike) -> float:
    """|(J(pi') - J(pi) - L) - <d' - d, Abar>/(1-g)|: what swapping d' for d leaves out."""
    before, after = evaluate(mdp, old), evaluate(mdp, new)
    expected = np.sum(after.probabilities * before.advantage, axis=-1)
    surrogate_gain = mdp.effective_horizon * float(np.sum(before.visitation * expected))
    transfer = mdp.effective_horizon * float(np.sum((after.visitation - before.visitation) * expected))
    return abs(after.expected_return - before.expected_return - surrogate_gain - transfer)


def surrogate_at_old(mdp: MDP, policy: PolicyLike) -> float:
    """|L(pi)|: the surrogate gain of no change, on the batch that the rules see, in units of return."""
    policy = tabular_policy(policy)
    with jax.enable_x64(True):
        return abs(float(surrogate(policy, exact_batch(mdp, policy)))) * mdp.effective_horizon


def gradient_difference(mdp: MDP, policy: PolicyLike) -> float:
    """max |grad L - grad J| over the logits at the old policy: the surrogate is right to first order.

    grad L is the one that the rules take, of the batch's surrogate; grad J is differentiated through the
    solution of the Bellman equation, without any theorem about policy gradients. Dense; for small MDPs.
    """
    policy = tabular_policy(policy)
    with jax.enable_x64(True):
        batch = exact_batch(mdp, policy)
        of_surrogate = jax.grad(lambda p: surrogate(p, batch))(policy).logits * mdp.effective_horizon
        of_return = jax.grad(lambda p: _return_of(mdp, p))(policy).logits
        return float(jnp.max(jnp.abs(of_surrogate - of_return)))


def return_gradient(mdp: MDP, policy: PolicyLike) -> Float[Array, "N A"]:
    """grad J in the logits, by differentiating through the solution of the Bellman equation."""
    with jax.enable_x64(True):
        return np.asarray(jax.grad(lambda p: _return_of(mdp, p))(tabular_policy(policy)).logits)


def _return_of(mdp: MDP, policy: TabularPolicy) -> Any:
    matrix = mdp.matrix if isinstance(mdp.matrix, np.ndarray) else mdp.matrix.toarray()
    transition = jnp.asarray(matrix.reshape(mdp.states, mdp.actions, mdp.states))
    probs = policy(jnp.arange(len(policy.logits))).probs().reshape(mdp.policy_shape)
    if mdp.horizon is None:
        step = jnp.einsum("sa,sat->st", probs, transition)
        value = jnp.linalg.solve(jnp.eye(mdp.states) - mdp.discount * step, jnp.sum(probs * mdp.reward, axis=1))
        return mdp.start @ value
    value = jnp.zeros(mdp.states)
    for now in probs[::-1]:
        value = jnp.sum(now * (mdp.reward + mdp.discount * (transition @ value)), axis=1)
    return mdp.start @ value

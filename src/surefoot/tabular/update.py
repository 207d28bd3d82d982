"""The bridge between the exact engine and the rules: a batch of every state and action."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import numpy as np

from surefoot.batch import Batch
from surefoot.distributions import Categorical
from surefoot.policy import TabularPolicy
from surefoot.tabular.evaluation import Evaluation
from surefoot.tabular.model import MDP, PolicyLike


def tabular_policy(policy: PolicyLike) -> TabularPolicy:
    """`policy` as one that rules can move; probabilities [..., A] become logits."""
    return policy if isinstance(policy, TabularPolicy) else TabularPolicy.of(np.asarray(policy, np.float64))


def exact_batch(mdp: MDP, policy: PolicyLike) -> Batch:
    """All S*A pairs of state and action (T*S*A with a horizon) as the rows of a Batch, in NumPy float64.

    Row s*A + a has the exact advantage A(s, a) and base d(s), so that the surrogate is the sum over
    actions sum_s d(s) sum_a pi'(a|s) A(s, a), with nothing divided by pi. Its weight is d(s)/A: an average
    over rows is the average over states under d. With a horizon d is the law of time and state,
    proportional to g^t p_t(s). Gains on the batch are those of one step; times
    `mdp.effective_horizon` they are those of the return. Advantages below the rounding of the values they
    are differences of (1e-13 of the largest) are 0, so that no rule steps along noise.

    Raises ModelError for a policy that does not fit.
    """
    policy = tabular_policy(policy)
    account = mdp.evaluate(policy)
    logits: Any = np.asarray(policy.logits, np.float64)
    state: Any = np.repeat(np.arange(account.visitation.size), mdp.actions)
    action: Any = np.tile(np.arange(mdp.actions), account.visitation.size)
    base: Any = account.visitation.ravel()[state]
    with np.errstate(divide="ignore"):
        log_base: Any = np.log(base)
    return Batch(
        observation=state,
        mask=None,
        action=action,
        advantage=_above_rounding(account),
        old=Categorical(logits[state]),
        weight=base / mdp.actions,
        log_base=log_base,
    )


def _above_rounding(account: Evaluation) -> Any:
    rounding = 1e-13 * np.max(np.abs(account.action_value))
    return np.where(np.abs(account.advantage) > rounding, account.advantage, 0).ravel()


@eqx.filter_jit
def _compiled(rule: Any, policy: Any, memory: Any, batch: Batch, key: Any) -> Any:
    return rule.update(policy, memory, batch, key)


def _in_float64(leaf: Any) -> Any:
    return np.asarray(leaf, np.float64) if np.issubdtype(np.asarray(leaf).dtype, np.floating) else leaf


def update(rule: Any, policy: PolicyLike, memory: Any, batch: Batch, key: Any = None) -> tuple[TabularPolicy, Any, Any]:
    """`rule.update` in float64, whatever JAX's own setting: (policy, memory, report) in NumPy.

    Advantages are exact, so they are never standardised: a rule that would is taken without. Everything
    else about the rule stays as it is; `surefoot.improvement.exact_rule` makes rules with the settings that
    suit exact batches (no damping, the closed form of the natural gradient).
    """
    if getattr(rule, "standardise", False):
        rule = dataclasses.replace(rule, standardise=False)
    with jax.enable_x64(True):
        key = jax.random.key(0) if key is None else key
        # Memory that was begun outside this function is in 32 bits.
        memory = jax.tree.map(_in_float64, memory)
        result = _compiled(rule, tabular_policy(policy), memory, batch, key)
        return jax.tree.map(np.asarray, result)

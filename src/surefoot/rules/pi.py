"""Policy iteration: the jump that the other rules soften."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from surefoot import config
from surefoot.batch import Batch
from surefoot.errors import SettingError
from surefoot.geometry import movement, tabular_advantage
from surefoot.policy import Policy, TabularPolicy
from surefoot.rules.base import Memory, Proposal, Rule, UpdateReport, report_of

_ROUNDING = 4096
"""Actions whose advantages differ by less than this many units of rounding of the largest are tied."""


class PI(Rule):
    """pi'(s) = argmax_a A(s, a) in every state: the limit of the natural gradient for eta -> infinity.

    Howard 1960; the lecture's policy iteration, in which an update is a jump and no trust region holds it.
    The KL from a policy that took other actions is infinite, and so is the step in logits. Where the
    policy takes only actions of the largest advantage, nothing changes; when that is so everywhere the
    update is refused, and policy iteration has ended.

    Differences from the source: (1) tied actions keep the policy's proportions, or share equally where it
    takes none of them; (2) on samples, states that were never seen stay as they are. The exact batch has
    every state, met or not, and all are improved.
    """

    settings_class: ClassVar[type[config.RuleSettings]] = config.PI

    def init(self, policy: Policy) -> Memory:
        _check_policy(policy)
        return ()

    def update(
        self, policy: Policy, memory: Memory, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Policy, Memory, UpdateReport]:
        policy = _check_policy(policy)
        advantage = tabular_advantage(policy, batch)
        rounding = _ROUNDING * jnp.finfo(advantage.dtype).eps * jnp.max(jnp.abs(advantage))
        best = advantage >= jnp.max(advantage, axis=-1, keepdims=True) - rounding
        kept = jnp.where(best, policy.logits, -jnp.inf)
        taken = jnp.any(jnp.isfinite(kept), axis=-1, keepdims=True)
        greedy = TabularPolicy(jnp.where(taken, kept, jnp.where(best, 0.0, -jnp.inf)))
        accepted = jnp.any(greedy.logits != policy.logits) & jnp.all(jnp.isfinite(advantage))
        moved = movement(greedy, batch)
        nothing, without_end = jnp.zeros_like(rounding), jnp.full_like(rounding, jnp.inf)
        proposal = Proposal(
            step=jnp.zeros_like(policy.logits).ravel(),
            scale=nothing + 1,
            acceptable=accepted,
            # The surrogate is linear in the probabilities, so here the linear model is the surrogate.
            predicted_gain=moved.surrogate_gain,
            predicted_kl=moved.kl,
            multiplier=nothing,
            backtracks=jnp.asarray(0, jnp.int32),
            solver_iterations=jnp.asarray(0, jnp.int32),
            solver_residual=nothing,
        )
        report = report_of(batch, proposal, moved, accepted=accepted, length=without_end, unit=nothing + 1)
        return TabularPolicy(jnp.where(accepted, greedy.logits, policy.logits)), memory, report


def _check_policy(policy: Policy) -> TabularPolicy:
    if not isinstance(policy, TabularPolicy):
        raise SettingError(
            f"the rule pi is for tabular policies of finite MDPs, but a {type(policy).__name__} came; "
            "`surefoot exact` has them"
        )
    return policy

"""The KL Lagrangian by dual gradient descent."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from surefoot import config
from surefoot.batch import Batch
from surefoot.geometry import movement, ratio_mass
from surefoot.policy import Policy, flatten
from surefoot.rules.base import Memory, Rule, UpdateReport, choice, conclude, kept, numeric
from surefoot.rules.inner import (
    as_step,
    check_inner,
    flat,
    mean_kl,
    multiplicative,
    penalised_optimum,
    proposed,
)
from surefoot.rules.kl_penalty import PenaltyMemory, penalised_maximum, penalty_memory
from surefoot.rules.natural import measured


class Dual(Rule):
    """min over lambda >= 0 of max over pi' of surrogate(pi') - lambda (KL - radius), lambda and pi' in turn.

    Dual gradient descent on the trust region's Lagrangian (Levine, CS285 lecture 9; Boyd & Vandenberghe 2004,
    section 5.5.5): maximise in pi' for the present lambda, then move lambda along the constraint's violation,
    `outer` times an update. The multiplicative descent lambda <- lambda sqrt(KL/radius) needs no step size; the
    additive one, lambda <- max(0, lambda + step (KL - radius)), is stable for step < 2 lambda^3 / Var_pi' A.
    The path of lambda is in the report.

    Differences from the source: (1) lambda is projected to lambda >= 0; (2) the importance ratio, without which
    the samples' gradient is zero, and the direction of the KL, which is here KL(new || old) by default, are
    explicit; (3) with the closed form (tables of logits), where even the greedy policy is inside the radius,
    lambda is 0 at once; (4) with gradient steps, which need not reach the maximum, one move of lambda is at
    most a doubling or halving, and it falls only after an update's last; (5) a gradient that is only rounding
    moves nothing; (6) lambda is carried to the next update; (7) advantages are standardised, lambda is reported
    per reward unit.
    """

    settings_class: ClassVar[type[config.RuleSettings]] = config.Dual

    radius: Float[Array, ""] = numeric(config.Dual.radius)
    multiplier: Float[Array, ""] = numeric(config.Dual.multiplier)
    descent: str = choice(config.Dual.descent)
    multiplier_step: Float[Array, ""] | None = numeric(config.Dual.multiplier_step)
    outer: int = choice(config.Dual.outer)
    divergence: str = choice(config.Dual.divergence)
    inner: str = choice(config.Dual.inner)
    epochs: int = choice(config.Dual.epochs)
    minibatch: int = choice(config.Dual.minibatch)
    step_size: Float[Array, ""] = numeric(config.Dual.step_size)
    max_gradient_norm: Float[Array, ""] | None = numeric(config.Dual.max_gradient_norm)
    stop: Float[Array, ""] | None = numeric(config.Dual.stop)
    chunk: int = choice(config.Dual.chunk)
    standardise: bool = choice(config.Dual.standardise)

    def init(self, policy: Policy) -> Memory:
        check_inner(self, policy)
        return penalty_memory(self, policy)

    def update(
        self, policy: Policy, memory: Memory, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Policy, Memory, UpdateReport]:
        check_inner(self, policy)
        rule = self.cast(policy)
        batch, unit = measured(rule, batch)
        theta, rebuild = flatten(policy)

        def descend(carry: Any, turn: tuple[PRNGKeyArray, Array]) -> Any:
            multiplier, theta, moments = carry
            key, last = turn
            theta, moments = penalised_maximum(rule, policy, batch, key, multiplier, theta, moments)
            candidate = rebuild(theta)
            kl = mean_kl(candidate, batch, rule.divergence)
            moved = _descended(rule, multiplier, kl, candidate, batch)
            if rule.inner == "gradient":
                # Half way up, a small KL says nothing of lambda yet.
                moved = jnp.where(last, moved, jnp.maximum(moved, multiplier))
            return (moved, theta, moments), multiplier

        start = (jnp.asarray(memory.multiplier, theta.dtype), theta, memory.moments)
        if rule.inner == "closed-form":
            greedy = rebuild(penalised_optimum(policy, batch, jnp.zeros_like(start[0]), rule.divergence))
            inactive = mean_kl(greedy, batch, rule.divergence) <= rule.radius
            start = (jnp.where(inactive, 0, start[0]), *start[1:])
        turns = jax.random.split(key, rule.outer), jnp.arange(rule.outer) == rule.outer - 1
        (after, target, moments), path = jax.lax.scan(descend, start, turns)
        step = as_step(policy, target)
        moved = movement(rebuild(theta + step), batch, chunk=rule.chunk)
        proposal = proposed(policy, batch, step, ~flat(policy, batch), path[-1], chunk=rule.chunk)
        new, report = conclude(policy, batch, proposal, moved, unit=unit)
        report = report._replace(multiplier_path=path * unit)
        return new, kept(report.accepted, PenaltyMemory(after, moments), memory), report


def _descended(rule: Dual, multiplier: Array, kl: Array, policy: Policy, batch: Batch) -> Array:
    """Lambda after one move of the outer descent."""
    if rule.descent == "multiplicative":
        return multiplicative(rule, multiplier, kl)
    if rule.multiplier_step is not None:
        return jnp.maximum(0, multiplier + rule.multiplier_step * (kl - rule.radius))
    # d KL / d lambda = -Var/lambda^3, so this step is Newton's; its second moment is at least the variance.
    mass = ratio_mass(batch, policy(batch.observation, batch.mask).log_prob(batch.action))
    second = jnp.sum(mass * batch.advantage**2)
    step = jnp.where(second > 0, multiplier**3 / jnp.where(second > 0, second, 1), 0)
    return jnp.maximum(multiplier / 4, multiplier + step * (kl - rule.radius))

"""The surrogate with a penalty on the KL."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from surefoot import config
from surefoot.batch import Batch
from surefoot.geometry import movement, surrogate
from surefoot.policy import Policy, flatten
from surefoot.rules.base import Memory, Rule, UpdateReport, choice, conclude, kept, numeric
from surefoot.rules.inner import (
    as_step,
    ascend,
    check_inner,
    flat,
    fresh_moments,
    mean_kl,
    multiplicative,
    penalised_optimum,
    proposed,
)
from surefoot.rules.natural import measured


class PenaltyMemory(NamedTuple):
    """What a penalised rule carries on.

    Attributes:
        multiplier: lambda, per unit of the advantage as the step sees it.
        moments: the inner optimiser's state.
    """

    multiplier: Float[Array, ""]
    moments: Any


def penalised(policy: Policy, part: Batch, multiplier: Array, divergence: str) -> Float[Array, ""]:
    """The Lagrangian's part that depends on the policy: surrogate - lambda KL, a sum over rows."""
    return surrogate(policy, part) - multiplier * mean_kl(policy, part, divergence)


def penalised_maximum(
    rule: Any, policy: Policy, batch: Batch, key: PRNGKeyArray, multiplier: Array, theta: Array, moments: Any
) -> tuple[Float[Array, " P"], Any]:
    """The parameters that maximise surrogate - lambda KL as the rule does it, by gradient steps from `theta` or in
    closed form, and the inner optimiser's state."""
    if rule.inner == "closed-form":
        return penalised_optimum(policy, batch, multiplier, rule.divergence), moments

    def objective(candidate: Policy, part: Batch) -> Array:
        return penalised(candidate, part, multiplier, rule.divergence)

    ascent = ascend(rule, objective, policy, batch, key, theta, moments)
    return ascent.theta, ascent.moments


class KLPenalty(Rule):
    """maximise surrogate(pi') - lambda KL, lambda fixed or following the radius (Schulman et al. 2017, section 4).

    The inner maximisation is minibatch gradient ascent, or for a table of logits its closed form:
    pi' proportional to pi exp(A/lambda) for KL(new || old), pi' = lambda pi / (nu - A) for KL(old || new).
    Then lambda is doubled where the KL exceeds 1.5 radius and halved where it is below radius/1.5 ("doubling"),
    or multiplied by sqrt(KL/radius) ("sqrt"), which for small steps is exact, as KL ~ 1/lambda^2.

    Differences from the source: (1) passes end early once the mean KL exceeds `stop`; (2) the direction of the
    KL can be chosen; (3) a gradient that is only rounding moves nothing; (4) advantages are standardised, so
    lambda is per standard deviation of them; it is reported per reward unit.
    """

    settings_class: ClassVar[type[config.RuleSettings]] = config.KLPenalty

    radius: Float[Array, ""] = numeric(config.KLPenalty.radius)
    multiplier: Float[Array, ""] = numeric(config.KLPenalty.multiplier)
    adapt: str = choice(config.KLPenalty.adapt)
    divergence: str = choice(config.KLPenalty.divergence)
    inner: str = choice(config.KLPenalty.inner)
    epochs: int = choice(config.KLPenalty.epochs)
    minibatch: int = choice(config.KLPenalty.minibatch)
    step_size: Float[Array, ""] = numeric(config.KLPenalty.step_size)
    max_gradient_norm: Float[Array, ""] | None = numeric(config.KLPenalty.max_gradient_norm)
    stop: Float[Array, ""] | None = numeric(config.KLPenalty.stop)
    chunk: int = choice(config.KLPenalty.chunk)
    standardise: bool = choice(config.KLPenalty.standardise)

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
        multiplier = jnp.asarray(memory.multiplier, theta.dtype)
        target, moments = penalised_maximum(rule, policy, batch, key, multiplier, theta, memory.moments)
        step = as_step(policy, target)
        moved = movement(rebuild(theta + step), batch, chunk=rule.chunk)
        proposal = proposed(policy, batch, step, ~flat(policy, batch), multiplier, chunk=rule.chunk)
        new, report = conclude(policy, batch, proposal, moved, unit=unit)
        divergence = moved.kl if rule.divergence == "kl" else moved.reverse_kl
        after = PenaltyMemory(_followed(rule, multiplier, divergence), moments)
        return new, kept(report.accepted, after, memory), report


def penalty_memory(rule: Any, policy: Policy) -> PenaltyMemory:
    """The first lambda, and an optimiser that has not moved yet."""
    theta, _ = flatten(policy)
    return PenaltyMemory(jnp.asarray(rule.multiplier, theta.dtype), fresh_moments(rule, policy))


def _followed(rule: KLPenalty, multiplier: Array, kl: Array) -> Array:
    """Lambda for the next update."""
    if rule.adapt == "doubling":
        factor = jnp.where(kl > 1.5 * rule.radius, 2.0, jnp.where(kl < rule.radius / 1.5, 0.5, 1.0))
        return multiplier * factor.astype(multiplier.dtype)
    if rule.adapt == "sqrt":
        return multiplicative(rule, multiplier, kl)
    return multiplier

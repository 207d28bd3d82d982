"""Proximal policy optimisation with the clipped surrogate."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from surefoot import config
from surefoot.batch import Batch
from surefoot.geometry import movement, ratio_mass
from surefoot.policy import Policy, flatten
from surefoot.rules.base import Memory, Rule, UpdateReport, choice, conclude, kept, numeric
from surefoot.rules.inner import as_step, ascend, flat, fresh_moments, proposed
from surefoot.rules.natural import measured


def clipped_surrogate(policy: Policy, batch: Batch, clip: Float[Array, ""]) -> Float[Array, ""]:
    """sum of min(m A, clip(m, (1-c) m_old, (1+c) m_old) A) with m = base pi'(a|s), the ratio times m_old.

    For samples m_old is the row's weight and this is the source's equation 7; on enumerated rows nothing is
    divided by pi.
    """
    mass = ratio_mass(batch, policy(batch.observation, batch.mask).log_prob(batch.action))
    old = ratio_mass(batch, batch.old.log_prob(batch.action))
    held = jnp.clip(mass, (1 - clip) * old, (1 + clip) * old)
    return jnp.sum(jnp.minimum(mass * batch.advantage, held * batch.advantage))


class PPO(Rule):
    """maximise E min(r A, clip(r, 1 - c, 1 + c) A) by minibatch gradient ascent (Schulman et al. 2017, equation 7).

    r = pi'(a|s)/pi(a|s). The clipping removes the incentive to move a ratio further, and no more: nothing
    bounds the KL, unless `stop` ends the passes once the exact mean KL(old || new) exceeds it. There is no
    multiplier; the report has 0.

    Differences from the source: (1) the critic is fitted apart, and there is no entropy bonus; (2) gradients are
    scaled down to `max_gradient_norm`, as the source's code does; (3) the optional stop; (4) a gradient that is
    only rounding moves nothing; (5) advantages are standardised on the batch, not on each minibatch.
    """

    settings_class: ClassVar[type[config.RuleSettings]] = config.PPO

    clip: Float[Array, ""] = numeric(config.PPO.clip)
    epochs: int = choice(config.PPO.epochs)
    minibatch: int = choice(config.PPO.minibatch)
    step_size: Float[Array, ""] = numeric(config.PPO.step_size)
    max_gradient_norm: Float[Array, ""] | None = numeric(config.PPO.max_gradient_norm)
    stop: Float[Array, ""] | None = numeric(config.PPO.stop)
    chunk: int = choice(config.PPO.chunk)
    standardise: bool = choice(config.PPO.standardise)

    def init(self, policy: Policy) -> Memory:
        return fresh_moments(self, policy)

    def update(
        self, policy: Policy, memory: Memory, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Policy, Memory, UpdateReport]:
        rule = self.cast(policy)
        batch, unit = measured(rule, batch)
        theta, rebuild = flatten(policy)

        def objective(candidate: Policy, part: Batch) -> Array:
            return clipped_surrogate(candidate, part, rule.clip)

        ascent = ascend(rule, objective, policy, batch, key, theta, memory)
        step = as_step(policy, ascent.theta)
        moved = movement(rebuild(theta + step), batch, chunk=rule.chunk)
        proposal = proposed(policy, batch, step, ~flat(policy, batch), jnp.zeros_like(unit), chunk=rule.chunk)
        new, report = conclude(policy, batch, proposal, moved, unit=unit)
        return new, kept(report.accepted, ascent.moments, memory), report

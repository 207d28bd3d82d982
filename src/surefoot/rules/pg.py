"""The policy gradient with a Euclidean trust region."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from surefoot import config
from surefoot.batch import Batch
from surefoot.geometry import fisher_quadratic, movement, surrogate_gradient
from surefoot.policy import Policy, flatten
from surefoot.rules.base import Memory, Proposal, Rule, UpdateReport, choice, conclude, numeric
from surefoot.rules.natural import measured
from surefoot.steps import step_to_ball


class PG(Rule):
    """theta' = theta + sqrt(radius / |g|^2) g: maximise g^T d subject to |d|^2 <= radius.

    The gradient ascent step of the lecture (Levine, CS285 lecture 9): a ball in parameter space, whatever
    the policy makes of it. Its radius is a squared length, not a divergence. Setting the derivative of
    g^T d - lambda (|d|^2 - radius) to zero gives the multiplier lambda = |g| / (2 sqrt(radius)).

    Differences from the source: (1) advantages are standardised, which leaves the step's length as it is.
    """

    settings_class: ClassVar[type[config.RuleSettings]] = config.PG

    radius: Float[Array, ""] = numeric(config.PG.radius)
    chunk: int = choice(config.PG.chunk)
    standardise: bool = choice(config.PG.standardise)

    def init(self, policy: Policy) -> Memory:
        return ()

    def update(
        self, policy: Policy, memory: Memory, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Policy, Memory, UpdateReport]:
        rule = self.cast(policy)
        batch, unit = measured(rule, batch)
        gradient = surrogate_gradient(policy, batch, chunk=rule.chunk)
        alpha = step_to_ball(gradient, rule.radius)
        step = alpha * gradient
        theta, rebuild = flatten(policy)
        proposal = Proposal(
            step=step,
            scale=jnp.ones_like(alpha),
            acceptable=alpha > 0,
            predicted_gain=jnp.vdot(gradient, step),
            predicted_kl=0.5 * fisher_quadratic(policy, batch, step, chunk=rule.chunk),
            multiplier=jnp.where(alpha > 0, 0.5 / alpha, jnp.inf),
            backtracks=jnp.asarray(0, jnp.int32),
            solver_iterations=jnp.asarray(0, jnp.int32),
            solver_residual=jnp.zeros_like(alpha),
        )
        moved = movement(rebuild(theta + proposal.step), batch, chunk=rule.chunk)
        policy, report = conclude(policy, batch, proposal, moved, unit=unit)
        return policy, memory, report

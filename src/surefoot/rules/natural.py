"""The step that the natural gradient and TRPO share: along F^-1 g, to the KL radius."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from surefoot import config
from surefoot.batch import Batch, standardised, weighted_sum
from surefoot.errors import SettingError
from surefoot.geometry import (
    Movement,
    dense_matrix,
    empirical_fisher_operator,
    fisher_operator,
    fisher_quadratics,
    subsample,
    surrogate_gradient,
    tabular_natural_gradient,
)
from surefoot.policy import Policy, TabularPolicy
from surefoot.rules.base import Proposal
from surefoot.steps import Solution, conjugate_gradients, solve_dense, step_to_radius

_FEWEST_ROWS = 256


def chosen_subsample(rule: Any) -> float:
    """The rule's share of rows for the Fisher matrix, or the default where none was said."""
    return config.default_subsample(_undamped(rule)) if rule.subsample is None else rule.subsample


def _undamped(rule: Any) -> bool:
    """Whether the damping is known to be 0 (it is not known while traced)."""
    if isinstance(rule.damping, jax.Array) or not np.issubdtype(np.asarray(rule.damping).dtype, np.number):
        return False
    return bool(np.any(np.asarray(rule.damping) <= 0))


def check_subsample(rule: Any) -> None:
    """Refuse a subsampled Fisher matrix without damping: the gradient may leave its range.

    Raises SettingError.
    """
    rule.settings()  # what is illegal by itself is told first
    if rule.subsample < 1 and _undamped(rule):
        raise SettingError(
            f"damping must be above 0 with subsample {rule.subsample:g}, but 0 came: "
            "the gradient of the whole batch may leave the range of a part's Fisher matrix"
        )


def measured(rule: Any, batch: Batch):
    """The batch that the step is computed from, and the unit that turns its gains into reward units."""
    return standardised(batch) if rule.standardise else (batch, jnp.ones_like(batch.weight[0]))


def constrained(moved: Movement, constraint: str, divergence: str) -> Float[Array, ""]:
    """The KL that the radius is for: the mean or the largest, old || new or new || old."""
    if constraint == "mean":
        return moved.kl if divergence == "kl" else moved.reverse_kl
    return moved.max_kl if divergence == "kl" else moved.max_reverse_kl


def check_solver(rule: Any, policy: Policy) -> None:
    """Refuse the closed form for a policy that is no table. Raises SettingError."""
    if rule.solver == "tabular" and not isinstance(policy, TabularPolicy):
        raise SettingError(
            f"solver 'tabular' is for tabular policies of finite MDPs, but a {type(policy).__name__} came; use 'cg'"
        )


def _solution(rule: Any, policy: Policy, batch: Batch, gradient: Float[Array, " P"]) -> Solution:
    if rule.solver == "tabular":
        assert isinstance(policy, TabularPolicy)
        nothing = jnp.zeros_like(batch.weight[0])
        x = tabular_natural_gradient(policy, batch).ravel()
        return Solution(x, nothing, jnp.asarray(0, jnp.int32), jnp.asarray(True), jnp.asarray(True))
    part = subsample(batch, rule.subsample, fewest=_FEWEST_ROWS)
    fisher = fisher_operator if rule.fisher == "metric" else empirical_fisher_operator
    operator = fisher(policy, part, chunk=rule.chunk)
    if rule.solver == "dense":
        return solve_dense(dense_matrix(operator, gradient), gradient, damping=rule.damping)
    return conjugate_gradients(
        operator,
        gradient,
        damping=rule.damping,
        iterations=rule.iterations,
        tolerance=rule.tolerance,
    )


def natural_step(rule: Any, policy: Policy, batch: Batch) -> Proposal:
    """step = alpha x, with (F + damping I) x = g by conjugate gradients and alpha = sqrt(2 radius / x^T F x).

    F is taken on a subsample of the rows while solving; x^T F x on all of them and without damping, so
    that the quadratic model of the step's KL on the batch is the radius whatever was damped or left out:
    its mean over states, or its largest value.
    A rule with an `eta` takes alpha = eta whatever the radius.
    The multiplier of max g^T d - lambda (d^T F d / 2 - radius) at d = x/lambda is lambda = 1/alpha.
    """
    check_solver(rule, policy)
    gradient = surrogate_gradient(policy, batch, chunk=rule.chunk)
    solution = _solution(rule, policy, batch, gradient)
    each = fisher_quadratics(policy, batch, solution.x, chunk=rule.chunk)
    mean = weighted_sum(batch.weight, each)
    quadratic = mean if rule.constraint == "mean" else jnp.max(jnp.where(batch.weight > 0, each, 0))
    eta = getattr(rule, "eta", None)
    alpha = step_to_radius(quadratic, rule.radius) if eta is None else eta
    step = alpha * solution.x
    return Proposal(
        step=step,
        scale=jnp.ones_like(alpha),
        acceptable=alpha > 0,
        predicted_gain=jnp.vdot(gradient, step),
        predicted_kl=0.5 * alpha**2 * mean,
        multiplier=1 / alpha,
        backtracks=jnp.asarray(0, jnp.int32),
        solver_iterations=solution.iterations,
        solver_residual=solution.residual,
    )

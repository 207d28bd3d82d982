"""The inner maximisation that penalty, dual and PPO share: gradient steps on an objective, or its closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from surefoot.batch import Batch, rows, shuffled_rows, weighted_sum
from surefoot.errors import SettingError
from surefoot.geometry import fisher_quadratic, ratio_mass, surrogate_gradient, tabular_advantage
from surefoot.policy import Policy, TabularPolicy, flatten
from surefoot.rules.base import Proposal
from surefoot.sharding import minibatch_size, split

Objective = Callable[[Policy, Batch], Array]

_ROUNDING = 32
_BISECTIONS = 64


class Ascent(NamedTuple):
    """Where gradient ascent ended.

    Attributes:
        theta: parameters, [P].
        moments: the optimiser's state.
        passes: over the batch.
        kl: mean KL(old || new) after the last pass, nats; 0 where there was no need to know it.
    """

    theta: Float[Array, " P"]
    moments: Any
    passes: Int[Array, ""]
    kl: Float[Array, ""]


def optimiser(rule: Any) -> optax.GradientTransformation:
    """Adam with the rule's step size, on gradients no longer than its `max_gradient_norm`."""
    adam = optax.adam(rule.step_size, eps=1e-5)
    if rule.max_gradient_norm is None:
        return adam
    return optax.chain(optax.clip_by_global_norm(rule.max_gradient_norm), adam)


def fresh_moments(rule: Any, policy: Policy) -> Any:
    """The state of an optimiser that has not moved yet."""
    theta, _ = flatten(policy)
    # Zeros by their shapes alone: nothing is compiled for a start.
    shapes = jax.eval_shape(optimiser(rule).init, theta)
    return jax.tree.map(lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype)), shapes)


def ascend(
    rule: Any, objective: Objective, policy: Policy, batch: Batch, key: PRNGKeyArray, theta: Array, moments: Any
) -> Ascent:
    """`rule.epochs` passes of minibatch gradient ascent from `theta`, ended early where the KL exceeds `rule.stop`.

    `objective(policy, part)` is a sum over rows; a minibatch's is scaled up to the batch's size, so that its
    gradient is unbiased. The few rows that do not fill a minibatch sit out a pass, others the next.
    """
    _, rebuild = flatten(policy)
    size = minibatch_size(rule.minibatch or batch.size, batch.size)
    count = batch.size // size
    transform = optimiser(rule)

    def loss(theta: Array, part: Batch) -> Array:
        return -objective(rebuild(theta), part) * (batch.size / size)

    def step(carry: Any, index: Array) -> Any:
        theta, moments = carry
        part = batch if count == 1 and size == batch.size else rows(batch, index)
        change, moments = transform.update(jax.grad(loss)(theta, part), moments, theta)
        return (theta + change, moments), None

    def unfinished(ascent: Ascent) -> Array:
        more = ascent.passes < rule.epochs
        return more if rule.stop is None else more & ~(ascent.kl > rule.stop)

    def one_pass(ascent: Ascent) -> Ascent:
        order = split(shuffled_rows(jax.random.fold_in(key, ascent.passes), batch.size)[0], count, size)
        (theta, moments), _ = jax.lax.scan(step, (ascent.theta, ascent.moments), order)
        kl = ascent.kl if rule.stop is None else mean_kl(rebuild(theta), batch, "kl")
        return Ascent(theta, moments, ascent.passes + 1, kl)

    start = Ascent(theta, moments, jnp.asarray(0, jnp.int32), jnp.zeros((), theta.dtype))
    return jax.lax.while_loop(unfinished, one_pass, start)


def mean_kl(policy: Policy, batch: Batch, divergence: str) -> Float[Array, ""]:
    """The KL of `policy` from the batch's old one, mean over its states: `kl` is KL(old || new), nats."""
    new = policy(batch.observation, batch.mask)
    each = batch.old.kl(new) if divergence == "kl" else new.kl(batch.old)
    return weighted_sum(batch.weight, each)


def flat(policy: Policy, batch: Batch) -> Bool[Array, ""]:
    """Whether the surrogate's gradient is only rounding: an adaptive optimiser would make a step of it."""
    gradient = surrogate_gradient(policy, batch)
    size = jnp.sum(ratio_mass(batch, batch.old.log_prob(batch.action)) * jnp.abs(batch.advantage))
    return ~(jnp.linalg.norm(gradient) > _ROUNDING * jnp.finfo(gradient.dtype).eps * size)


def check_inner(rule: Any, policy: Policy) -> None:
    """Refuse the closed form for a policy that is no table. Raises SettingError."""
    if rule.inner == "closed-form" and not isinstance(policy, TabularPolicy):
        raise SettingError(
            f"inner 'closed-form' is for tabular policies of finite MDPs, but a {type(policy).__name__} came; "
            "use 'gradient'"
        )


def multiplicative(rule: Any, multiplier: Float[Array, ""], kl: Float[Array, ""]) -> Float[Array, ""]:
    """lambda sqrt(KL/radius): as KL ~ 1/lambda^2 for small steps, nearly the lambda whose KL is the radius.

    Gradient steps need not reach the maximum that the argument assumes: then at most doubled or halved.
    """
    factor = jnp.sqrt(kl / rule.radius)
    return multiplier * (jnp.clip(factor, 0.5, 2.0) if rule.inner == "gradient" else factor)


def penalised_optimum(
    policy: Policy, batch: Batch, multiplier: Float[Array, ""], divergence: str
) -> Float[Array, " P"]:
    """The logits that maximise E_pi' A - lambda KL in every state of the batch, in closed form, [N*A].

    For KL(new || old): pi' proportional to pi exp(A/lambda). For KL(old || new): pi' = lambda pi / (nu - A), with
    nu > max A over pi's support, by bisection. Lambda is held above 1e-12 of the largest advantage, where both
    are greedy to rounding. Actions of probability 0 stay so, and states without weight as they are.
    """
    assert isinstance(policy, TabularPolicy)  # as `check_inner` made sure
    advantage = tabular_advantage(policy, batch)
    log_probs = policy(jnp.arange(len(advantage))).log_probs()
    taken = jnp.isfinite(log_probs)
    largest = jnp.max(jnp.where(taken, jnp.abs(advantage), 0))
    multiplier = jnp.maximum(multiplier, 1e-12 * largest)
    multiplier = jnp.where(multiplier > 0, multiplier, 1)
    best = jnp.max(jnp.where(taken, advantage, -jnp.inf), axis=-1, keepdims=True)
    below = jnp.where(taken, advantage - best, 0) / multiplier
    soft = below if divergence == "reverse-kl" else -jnp.log(_offset(log_probs, below) - below)
    logits = log_probs + soft
    weight = jnp.zeros_like(advantage[:, 0]).at[batch.observation].add(batch.weight)
    return jnp.where(taken & (weight[:, None] > 0), logits, policy.logits).ravel()


def _offset(log_probs: Float[Array, "N A"], below: Float[Array, "N A"]) -> Float[Array, "N 1"]:
    """x = (nu - max A)/lambda with sum_a pi(a) / (x - below(a)) = 1, in (0, 1], by bisection on its logarithm."""
    probs = jnp.exp(log_probs)
    # The best action alone gives at least its own probability at x = that probability.
    low = jnp.log(jnp.max(jnp.where(below == 0, probs, 0), axis=-1, keepdims=True))
    bounds = (low, jnp.zeros_like(low))

    def halve(bounds: Any, _: Any) -> Any:
        low, high = bounds
        middle = (low + high) / 2
        above = jnp.sum(probs / (jnp.exp(middle) - below), axis=-1, keepdims=True) > 1
        return (jnp.where(above, middle, low), jnp.where(above, high, middle)), None

    (low, high), _ = jax.lax.scan(halve, bounds, None, length=_BISECTIONS)
    return jnp.exp((low + high) / 2)


def proposed(
    policy: Policy, batch: Batch, step: Float[Array, " P"], acceptable: Array, multiplier: Array, *, chunk: int
) -> Proposal:
    """A step that an inner maximisation came to, with what linear and quadratic models say of it."""
    nothing = jnp.zeros_like(multiplier)
    return Proposal(
        step=step,
        scale=nothing + 1,
        acceptable=acceptable,
        predicted_gain=jnp.vdot(surrogate_gradient(policy, batch, chunk=chunk), step),
        predicted_kl=0.5 * fisher_quadratic(policy, batch, step, chunk=chunk),
        multiplier=multiplier,
        backtracks=jnp.asarray(0, jnp.int32),
        solver_iterations=jnp.asarray(0, jnp.int32),
        solver_residual=nothing,
    )


def as_step(policy: Policy, theta: Float[Array, " P"]) -> Float[Array, " P"]:
    """theta - theta_old, with 0 where both are the -inf of an action that is never taken."""
    old, _ = flatten(policy)
    return jnp.where(jnp.isneginf(old), 0, theta - jnp.where(jnp.isneginf(old), 0, old))

"""The compiled stages of an iteration: estimate, update, judge and certify, fit the critic.

To JAX the settings that the stages take are trees: their numbers are leaves, which one program may be given anew and
the lanes of one program may differ in, and for the rest of them a program is compiled.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from surefoot import config
from surefoot.advantage import estimate
from surefoot.batch import Batch, Trajectory, reweighted, weighted_sum
from surefoot.critic import Critic, CriticReport, CriticState, fit
from surefoot.geometry import subsample
from surefoot.policy import NeuralPolicy
from surefoot.rules import Memory, Rule, UpdateReport
from surefoot.sampled_certificate import (
    Moved,
    advantage_change,
    movement_from_start,
    over_environments,
    temporal_difference,
)
from surefoot.sharding import merged, unmerged


def _as_tree(kind: type, *leaves: str) -> None:
    """Let JAX see settings of this kind as a tree with these fields as its leaves."""
    others = tuple(item.name for item in dataclasses.fields(kind) if item.name not in leaves)

    def flatten(settings: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(settings, name) for name in leaves), tuple(getattr(settings, name) for name in others)

    def unflatten(fixed: tuple[Any, ...], numbers: Any) -> Any:
        # Not through the constructor, whose checks cannot compare a number that is being traced.
        settings: Any = object.__new__(kind)
        for name, value in zip((*leaves, *others), (*numbers, *fixed), strict=True):
            object.__setattr__(settings, name, value)
        return settings

    jax.tree_util.register_pytree_node(kind, flatten, unflatten)


_as_tree(config.Estimator, "discount", "gae_lambda")
_as_tree(config.Critic, "step_size")
_as_tree(config.Run, "steps", "anneal", "anneal_from", "estimator", "critic")

_DRIFT_ROWS = 256  # on which the normaliser's movement is measured


class Estimates(NamedTuple):
    """What the estimate stage knows beside the batch.

    Attributes:
        value: the critic's value of each row's observation, [B].
        target: value targets, [B].
        error: temporal differences of the critic, [B].
        sums: `Sums` of the temporal differences, [N] each.
        terminating: weighted share of the rows that terminate.
        episode_return: return since each episode's start after each row, [T, N].
        reward_mean, reward_std, reward_largest: over real rows; the last is the largest magnitude.
        first_ratio_error: largest |pi(a|s) / pi_collecting(a|s) - 1| over real rows: 0 but for rounding,
            unless what is updated is not what collected.
        action_saturation: share of the sampled action coordinates that the action bounds cut off.
    """

    value: Float[Array, " B"]
    target: Float[Array, " B"]
    error: Float[Array, " B"]
    sums: tuple[Float[Array, " N"], Float[Array, " N"]]
    terminating: Float[Array, ""]
    episode_return: Float[Array, "T N"]
    reward_mean: Float[Array, ""]
    reward_std: Float[Array, ""]
    reward_largest: Float[Array, ""]
    first_ratio_error: Float[Array, ""]
    action_saturation: Float[Array, ""]


class Updated(NamedTuple):
    """What the update stage returns.

    Attributes:
        policy: after the update, with a normaliser that has also seen this iteration's observations.
        memory: the rule's.
        report: the rule's.
        held_out: `Sums` of (ratio - 1) A over the rows that the step did not see, [N] each; None without a holdout.
        normaliser_kl: mean KL that the normaliser's observations took.
        smallest_std: of a Gaussian policy, over its dimensions; None for others.
    """

    policy: NeuralPolicy
    memory: Memory
    report: UpdateReport
    held_out: tuple[Float[Array, " N"], Float[Array, " N"]] | None
    normaliser_kl: Float[Array, ""]
    smallest_std: Float[Array, ""] | None


@partial(jax.jit, static_argnames="count")
def split_keys(key: PRNGKeyArray, count: int) -> tuple[PRNGKeyArray, ...]:
    """Keys that are used once each."""
    return tuple(jax.random.split(key, count))


@jax.jit
def estimate_stage(
    policy: NeuralPolicy,
    critic: Critic,
    returns: Float[Array, " N"],
    trajectory: Trajectory,
    settings: config.Estimator,
) -> tuple[Batch, Estimates]:
    """Values in one batched call, advantages, and checks on what was collected."""
    before = jax.tree.map(lambda leaf: leaf[:-1], (trajectory.observation, trajectory.mask))
    old = policy(*before)
    value = critic(trajectory.observation)
    batch, target = estimate(
        trajectory,
        value,
        old,
        discount=settings.discount,
        gae_lambda=settings.gae_lambda,
        weighting=settings.state_weighting,
    )
    real = ~trajectory.reset
    count = jnp.maximum(jnp.sum(real), 1)
    reward = jnp.where(real, trajectory.reward, 0)
    mean = jnp.sum(reward) / count
    ratio_error = jnp.abs(jnp.expm1(old.log_prob(trajectory.action) - trajectory.log_prob))
    cut = policy.action_map.saturated(trajectory.action)
    cut = jnp.mean(cut.reshape(*real.shape, -1), axis=-1)
    error = temporal_difference(trajectory, value, settings.discount)
    weight = unmerged(batch.weight, real.shape)
    return batch, Estimates(
        value=merged(value[:-1]),
        target=target,
        error=merged(error),
        sums=over_environments(error, weight, trajectory.terminated, settings.discount),
        terminating=weighted_sum(batch.weight, merged(trajectory.terminated).astype(value.dtype)),
        episode_return=_returns_so_far(trajectory, returns),
        reward_mean=mean,
        reward_std=jnp.sqrt(jnp.sum(jnp.where(real, (reward - mean) ** 2, 0)) / count),
        reward_largest=jnp.max(jnp.abs(reward)),
        first_ratio_error=jnp.max(jnp.where(real, ratio_error, 0)),
        action_saturation=jnp.sum(cut * real) / count,
    )


@jax.jit
def frozen_error(
    critic: Critic, trajectory: Trajectory, weight: Float[Array, " B"], discount: Float[Array, ""] | float
) -> tuple[Array, Array]:
    """`Sums` of a critic's temporal differences."""
    error = temporal_difference(trajectory, critic(trajectory.observation), discount)
    return over_environments(error, unmerged(weight, error.shape), trajectory.terminated, discount)


def _seen(trajectory: Trajectory, batch: Batch, key: PRNGKeyArray, held: int, idle: Any) -> tuple[Batch, Any, Any]:
    """The batch and the key that the rule is given, with the rows that it does not see, [B], in between."""
    key, holdout_key = split_keys(key, 2)
    advantage = jnp.where(idle, 0, batch.advantage)
    seen = eqx.tree_at(lambda b: b.advantage, batch, advantage)
    if not held:
        return seen, None, key
    kept_out = jax.random.permutation(holdout_key, trajectory.reset.shape[1]) < held
    away = merged(jnp.broadcast_to(kept_out, trajectory.reset.shape))
    return reweighted(seen, jnp.where(away, 0, batch.weight)), away, key


@partial(jax.jit, static_argnames="held")
def seen_stage(
    trajectory: Trajectory, batch: Batch, key: PRNGKeyArray, *, held: int = 0, idle: Any = False
) -> tuple[Batch, PRNGKeyArray]:
    """What `update_stage` gives the rule, for whoever keeps it."""
    seen, _, key = _seen(trajectory, batch, key, held, idle)
    return seen, key


@partial(jax.jit, static_argnames="held")
def update_stage(
    rule: Rule,
    policy: NeuralPolicy,
    memory: Memory,
    trajectory: Trajectory,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    discount: Float[Array, ""] | float,
    held: int = 0,
    idle: Any = False,
) -> Updated:
    """The rule's update on all but `held` environments, then this iteration's observations into the normaliser,
    and the mean KL that that took. Where `idle`, the rule is given advantages of 0, on which it moves nothing."""
    seen, away, key = _seen(trajectory, batch, key, held, idle)
    updated, memory, report = rule.update(policy, memory, seen, key)
    assert isinstance(updated, NeuralPolicy)
    held_out = None
    if held:
        # The ratios' mean is 1, so the mean advantage only adds noise; it is that of the other environments, or a
        # row's own advantage would be in it.
        centred = batch.advantage - weighted_sum(seen.weight, batch.advantage)
        change = advantage_change(updated, eqx.tree_at(lambda b: b.advantage, batch, centred))
        shape, weight = trajectory.reset.shape, jnp.where(away, batch.weight, 0)
        change, weight = unmerged(change, shape), unmerged(weight, shape)
        held_out = over_environments(change, weight, trajectory.terminated, discount)
    observed = updated.observed(_before(trajectory), ~trajectory.reset)
    part = subsample(batch, _DRIFT_ROWS / batch.size)
    drift = updated(part.observation, part.mask).kl(observed(part.observation, part.mask))
    smallest = None if updated.log_std is None else jnp.exp(jnp.min(updated.log_std))
    return Updated(observed, memory, report, held_out, weighted_sum(part.weight, drift), smallest)


@jax.jit
def movement_stage(
    policy: NeuralPolicy,
    trajectory: Trajectory,
    batch: Batch,
    estimates: Estimates,
    discount: Float[Array, ""] | float,
) -> Moved:
    """How the policy moved under discounted weights. Its normaliser's own movement is part of it."""
    time = merged(jnp.asarray(trajectory.time))
    weight = jnp.where(merged(trajectory.reset), 0, jnp.asarray(discount, batch.weight.dtype) ** time)
    if trajectory.weight is not None:
        weight = weight * merged(trajectory.weight)
    return movement_from_start(
        policy,
        batch,
        weight / jnp.sum(weight),
        time=time,
        terminated=merged(trajectory.terminated),
        reward=merged(trajectory.reward),
        error=estimates.error,
        value=estimates.value,
    )


@jax.jit
def critic_stage(
    critic: CriticState,
    settings: config.Critic,
    trajectory: Trajectory,
    batch: Batch,
    target: Array,
    key: PRNGKeyArray,
) -> tuple[CriticState, CriticReport]:
    """The critic's fit, after the rule has used the old one's advantages, and then its normaliser."""
    fitted, report = fit(critic, settings, batch.observation, target, batch.weight, key)
    return fitted._replace(critic=fitted.critic.observed(_before(trajectory), ~trajectory.reset)), report


def _before(trajectory: Trajectory) -> Any:
    """What each row's action was chosen on."""
    return jax.tree.map(lambda leaf: leaf[:-1], trajectory.observation)


def _returns_so_far(trajectory: Trajectory, carried: Float[Array, " N"]) -> Float[Array, "T N"]:
    def forward(total, row):
        reward, reset, time = row
        # Not every episode begins with a reset row: a restarted source just begins anew. And not every reset row is
        # between two episodes: one for a step that is missing is in the midst of its own.
        reward = jnp.where(reset, 0, reward)
        total = jnp.where(time == 0, reward, total + reward)
        return total, total

    rows = (trajectory.reward, jnp.asarray(trajectory.reset), jnp.asarray(trajectory.time))
    return jax.lax.scan(forward, carried, rows)[1]

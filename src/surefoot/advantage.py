"""From a trajectory and values to a batch: generalised advantages, value targets, state weights."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from surefoot.batch import Batch, Trajectory, sampled_batch
from surefoot.distributions import Distribution
from surefoot.sharding import merged


def generalised_advantage(
    reward: Float[Array, "T N"],
    value: Float[Array, "T_plus_1 N"],
    terminated: Bool[Array, "T N"],
    truncated: Bool[Array, "T N"],
    *,
    discount: Float[Array, ""] | float,
    gae_lambda: Float[Array, ""] | float,
) -> Float[Array, "T N"]:
    """GAE(lambda) of Schulman et al. 2016, equation 16, with ends told apart.

    delta_t = r_t + discount (1 - terminated_t) V_{t+1} - V_t, and the sum over later deltas stops where an
    episode was terminated or truncated. `value[t + 1]` is the value of what row t led to, so a truncated
    episode bootstraps from its true final observation. Rows after an end (resets) hold no experience;
    what this returns there means nothing.

    Differences from the source: (1) termination and truncation are two flags.
    """
    going_on = 1 - terminated.astype(value.dtype)
    delta = reward + discount * going_on * value[1:] - value[:-1]
    decay = discount * gae_lambda * (1 - (terminated | truncated).astype(value.dtype))

    def backward(later, row):
        delta, decay = row
        advantage = delta + decay * later
        return advantage, advantage

    _, advantage = jax.lax.scan(backward, jnp.zeros_like(delta[0]), (delta, decay), reverse=True)
    return advantage


def state_weight(
    trajectory: Trajectory,
    *,
    discount: Float[Array, ""] | float,
    weighting: Literal["undiscounted", "discounted"],
) -> Float[Array, "T N"]:
    """Unnormalised weight of each row: 0 for resets, else 1, or discount^time when discounted; times its own."""
    real = jnp.where(trajectory.reset, 0, 1).astype(trajectory.log_prob.dtype)
    if trajectory.weight is not None:
        real = real * trajectory.weight
    if weighting == "undiscounted":
        return real
    return real * jnp.asarray(discount, real.dtype) ** trajectory.time


def estimate(
    trajectory: Trajectory,
    value: Float[Array, "T_plus_1 N"],
    old: Distribution,
    *,
    discount: Float[Array, ""] | float,
    gae_lambda: Float[Array, ""] | float,
    weighting: Literal["undiscounted", "discounted"] = "undiscounted",
) -> tuple[Batch, Float[Array, " B"]]:
    """The batch of B = T * N rows and the value targets A + V, [B], in reward units.

    Time is outermost in the rows, or in each device's block of them (`sharding`).

    Arguments:
        value: the critic's values of `trajectory.observation`, in reward units.
        old: the collecting policy's distributions, batched [T, N].
    """
    truncated = jnp.asarray(trajectory.truncated)
    if trajectory.weight is not None:
        # Where steps are missing, rows of no experience follow a row that ended nothing.
        truncated = truncated.at[:-1].set(truncated[:-1] | jnp.asarray(trajectory.reset)[1:])
    advantage = generalised_advantage(
        trajectory.reward.astype(value.dtype),
        value,
        trajectory.terminated,
        truncated,
        discount=discount,
        gae_lambda=gae_lambda,
    )
    weight = state_weight(trajectory, discount=discount, weighting=weighting)

    before = jax.tree.map(lambda leaf: merged(leaf[:-1]), (trajectory.observation, trajectory.mask))
    observation, mask = before
    batch = sampled_batch(
        observation,
        mask,
        action=merged(trajectory.action),
        advantage=merged(advantage),
        old=jax.tree.map(merged, old),
        weight=merged(weight),
    )
    return batch, merged(advantage + value[:-1])

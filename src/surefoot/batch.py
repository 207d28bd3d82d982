"""What flows from collection to update: a Trajectory as collected, a Batch as the rules see it."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from surefoot.distributions import Distribution
from surefoot.sharding import blocks, taken


class Trajectory(eqx.Module):
    """T steps of N environments, in the order in which they happened.

    Environments follow next-step autoreset: the row after an episode's end carries the end's true final
    observation and the first observation after it, its action was ignored, and it is not experience.
    Such rows are `reset`. So `observation[t + 1]` is always what row t led to. Sources on the host fill it
    with NumPy arrays, which move to the device with the first compiled call.

    Attributes:
        observation: tree of arrays [T + 1, N, ...].
        mask: which actions were allowed in each observation, [T + 1, N, K], or None.
        action: as sampled, before any clipping or mapping, [T, N, ...].
        log_prob: log probability of `action` when it was sampled, [T, N].
        reward: in the environment's own units, [T, N]; 0 in reset rows.
        terminated: the episode ended in a state whose value is 0, [T, N].
        truncated: the episode was cut; its last observation still has a value, [T, N].
        reset: not experience, [T, N].
        time: steps since the episode's start before the action, [T, N].
        weight: what each row counts for beside its state's weight, [T, N], where steps are missing: a row that is
            missing is a `reset` row, and the others make up for it. None: every row counts the same.
    """

    observation: Any
    mask: Bool[Array, "T_plus_1 N K"] | None
    action: Array
    log_prob: Float[Array, "T N"]
    reward: Float[Array, "T N"]
    terminated: Bool[Array, "T N"]
    truncated: Bool[Array, "T N"]
    reset: Bool[Array, "T N"]
    time: Int[Array, "T N"]
    weight: Float[Array, "T N"] | None = None


class Batch(eqx.Module):
    """Rows that an update is computed from, sampled or enumerated.

    The surrogate objective is sum_i base_i pi'(a_i|s_i) A_i. For samples base = weight / pi_old(a|s),
    for the S*A enumerated rows of a finite MDP base = d(s); it is kept as its logarithm because densities
    overflow. Averages over states (KL, Fisher) use `weight`, which sums to 1; a row that is not
    experience has weight 0 and log_base -inf, and no value in it matters.

    Attributes:
        observation: tree of arrays [B, ...].
        mask: allowed actions, [B, K], or None.
        action: [B, ...].
        advantage: A of the old policy in reward units, [B].
        old: the old policy's distributions, batched [B].
        weight: [B], nonnegative, sum 1.
        log_base: log of base, [B].
    """

    observation: Any
    mask: Bool[Array, "B K"] | None
    action: Array
    advantage: Float[Array, " B"]
    old: Distribution
    weight: Float[Array, " B"]
    log_base: Float[Array, " B"]

    @property
    def size(self) -> int:
        """Number of rows, B."""
        return self.weight.shape[0]


def sampled_batch(
    observation: Any,
    mask: Array | None,
    action: Array,
    advantage: Float[Array, " B"],
    old: Distribution,
    weight: Float[Array, " B"],
) -> Batch:
    """A Batch of transitions sampled from `old`; `weight` need not sum to 1 yet.

    Observations of rows without weight become 0: whatever they held would reach derivatives as 0 * nan.
    """
    observation = jax.tree.map(lambda leaf: _where_weighted(weight, leaf), observation)
    weight = weight / jnp.maximum(jnp.sum(weight), jnp.finfo(weight.dtype).tiny)
    log_base = jnp.where(weight > 0, jnp.log(jnp.where(weight > 0, weight, 1)) - old.log_prob(action), -jnp.inf)
    advantage = jnp.where(weight > 0, advantage, 0)
    return Batch(observation, mask, action, advantage, old, weight, log_base)


def reweighted(batch: Batch, weight: Float[Array, " B"]) -> Batch:
    """The same sampled rows with other weights, nonnegative and 0 wherever they were; they need not sum to 1 yet."""
    weight = weight / jnp.maximum(jnp.sum(weight), jnp.finfo(weight.dtype).tiny)
    counted = weight > 0
    change = jnp.log(jnp.where(counted, weight, 1)) - jnp.log(jnp.where(counted, batch.weight, 1))
    log_base = jnp.where(counted, batch.log_base + change, -jnp.inf)
    return eqx.tree_at(lambda b: (b.weight, b.log_base), batch, (weight, log_base))


def _where_weighted(weight: Float[Array, " B"], leaf: Array) -> Array:
    return jnp.where(weight.reshape(weight.shape + (1,) * (leaf.ndim - 1)) > 0, leaf, jnp.zeros_like(leaf))


def rows(batch: Batch, index: Any) -> Batch:
    """The rows that `index` selects (a slice or whole numbers; over several devices as `sharding.taken` has them), with
    weights as they were."""
    return jax.tree.map(lambda leaf: taken(leaf, index), batch)


def weighted_sum(weight: Float[Array, " B"], value: Float[Array, " B"]) -> Float[Array, ""]:
    """sum_i weight_i value_i with 0 * inf = 0 and 0 * nan = 0."""
    return jnp.sum(weight * jnp.where(weight > 0, value, 0))


def weighted_sums(weight: Float[Array, " B"], *values: Float[Array, " B"]) -> tuple[Float[Array, ""], ...]:
    """`weighted_sum` of each, in one pass: a compiler makes three kernels of every sum over a batch."""
    each = jnp.stack(values)
    return tuple(jnp.sum(weight * jnp.where(weight > 0, each, 0), axis=1))


def standardised(batch: Batch) -> tuple[Batch, Float[Array, ""]]:
    """The batch with advantages of weighted mean 0 and standard deviation 1, and the scale divided by.

    Advantages that are equal but for rounding become exactly 0, so that nothing moves on noise; the scale
    is then 1. The mean is a control variate: subtracting it leaves the gradient's expectation as it is.
    """
    advantage = batch.advantage
    mean = weighted_sum(batch.weight, advantage)
    centred = jnp.where(batch.weight > 0, advantage - mean, 0)
    std = jnp.sqrt(weighted_sum(batch.weight, centred**2))
    rounding = 32 * jnp.finfo(advantage.dtype).eps * jnp.max(jnp.abs(advantage))
    constant = ~(std > rounding)
    scale = jnp.where(constant, 1, std)
    result = jnp.where(constant, 0, centred / scale)
    return eqx.tree_at(lambda b: b.advantage, batch, result), scale


_MOST_SHUFFLED = 2**20  # leaves at least 12 random bits above the index


def shuffled(key: PRNGKeyArray, count: int, times: int = 1) -> Int[Array, "times count"]:
    """The indices 0 … count - 1 in random order, `times` over, for minibatches.

    Random numbers are sorted with the index in their lowest bits: one sort of one array, an eighth of the time of
    `jax.random.permutation`. Two indices whose random bits are the same stay in order, a pair in 2^(32 - log2 count);
    which minibatch an index falls into depends on its highest bits, so for minibatches that is nothing.
    """
    if count > _MOST_SHUFFLED:
        return jnp.stack([jax.random.permutation(each, count) for each in jax.random.split(key, times)])
    mask = np.uint32((1 << max(count - 1, 1).bit_length()) - 1)
    tagged = (jax.random.bits(key, (times, count), "uint32") & ~mask) | jnp.arange(count, dtype="uint32")
    return (jnp.sort(tagged, axis=1) & mask).astype(jnp.int32)


def shuffled_rows(key: PRNGKeyArray, count: int, times: int = 1) -> Int[Array, "times ..."]:
    """`shuffled` for the rows of a batch: over D devices each shuffles its own block, [times, D, count/D]."""
    devices = blocks()
    if devices == 1:
        return shuffled(key, count, times)
    return shuffled(key, count // devices, times * devices).reshape(times, devices, -1)

"""The geometry of a policy over a batch: surrogate, Fisher operator, divergences.

Everything is a sum over rows, so that it can be taken in chunks: `chunk` rows at a time bound the memory
whatever the batch's size, and 0 takes the whole batch at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from surefoot.batch import Batch, rows, weighted_sum, weighted_sums
from surefoot.policy import Policy, TabularPolicy, flatten
from surefoot.sharding import block_size, cut, in_every_block, put

Vector = Float[Array, " P"]


def surrogate(policy: Policy, batch: Batch) -> Float[Array, ""]:
    """sum_i base_i pi(a_i|s_i) A_i: the importance-weighted objective whose gradient at the old policy is
    the policy gradient (Kakade & Langford 2002; Schulman et al. 2015, equation 14). In units of
    `batch.advantage`."""
    log_prob = policy(batch.observation, batch.mask).log_prob(batch.action)
    return jnp.sum(ratio_mass(batch, log_prob) * batch.advantage)


def ratio_mass(batch: Batch, log_prob: Float[Array, " B"]) -> Float[Array, " B"]:
    """base * pi(a|s) of each row: weight times the importance ratio for samples, d(s) pi(a|s) for
    enumerated rows. 0 where base is 0, also where pi is 0 or infinite."""
    outside = jnp.isneginf(batch.log_base)
    exponent = jnp.where(outside, 0, batch.log_base) + jnp.where(outside, 0, log_prob)
    return jnp.where(outside, 0, jnp.exp(exponent))


def surrogate_gradient(policy: Policy, batch: Batch, *, chunk: int = 0) -> Vector:
    """Gradient of the surrogate in the policy's trainable parameters, [P]."""
    theta, rebuild = flatten(policy)
    gradient = jax.grad(lambda parameters, part: surrogate(rebuild(parameters), part))
    return _sum_over_chunks(lambda part: gradient(theta, part), batch, chunk)


def fisher_operator(policy: Policy, batch: Batch, *, chunk: int = 0) -> Callable[[Vector], Vector]:
    """v -> F v with F = sum_i weight_i J_i^T M_i J_i, [P] -> [P].

    J is the Jacobian of the distribution's parameters in the policy's, M the head's metric: one
    forward-mode and one reverse-mode product, positive semidefinite by construction, for every
    parametrisation and both directions of KL. Unchunked, the policy is linearised once and each product
    reuses that; chunked, each product linearises chunk by chunk and keeps nothing.

    Source: Schulman et al. 2015, appendix C.1. Differences: (1) weighted rows.
    """
    theta, rebuild = flatten(policy)

    def linearised(part: Batch) -> Callable[[Vector], Vector]:
        _, push, here = jax.linearize(_parameters_of(rebuild, part), theta, has_aux=True)
        pull = jax.linear_transpose(push, theta)

        def product(v: Vector) -> Vector:
            tangent = eqx.combine(push(v), here)
            image = eqx.filter(here.metric(tangent), eqx.is_inexact_array)
            (result,) = pull(jax.tree.map(lambda leaf: _scale_rows(part.weight, leaf), image))
            return result

        return product

    if not chunk or chunk >= batch.size:
        return linearised(batch)
    return lambda v: _sum_over_chunks(lambda part: linearised(part)(v), batch, chunk)


def empirical_fisher_operator(policy: Policy, batch: Batch, *, chunk: int = 0) -> Callable[[Vector], Vector]:
    """v -> F v with F = sum_i m_i psi_i psi_i^T, psi the score grad log pi(a|s) and m = base pi_old, [P] -> [P].

    The outer products of the scores of the batch's own actions: an estimate of the metric's F that is exact
    where every action is enumerated (Kakade 2001, equation 2). Its rank is at most the number of rows.
    """
    theta, rebuild = flatten(policy)

    def product(part: Batch, v: Vector) -> Vector:
        seen = part.weight > 0

        def log_prob(parameters: Vector) -> Array:
            value = rebuild(parameters)(part.observation, part.mask).log_prob(part.action)
            return jnp.where(seen & jnp.isfinite(value), value, 0)

        _, push = jax.linearize(log_prob, theta)
        mass = ratio_mass(part, part.old.log_prob(part.action))
        (result,) = jax.linear_transpose(push, theta)(mass * push(v))
        return result

    return lambda v: _sum_over_chunks(lambda part: product(part, v), batch, chunk)


def dense_matrix(operator: Callable[[Vector], Vector], theta: Vector) -> Float[Array, "P P"]:
    """The matrix of a linear operator, one product a column: for small policies."""
    return jax.vmap(operator, out_axes=1)(jnp.eye(theta.size, dtype=theta.dtype))


def fisher_quadratic(policy: Policy, batch: Batch, v: Vector, *, chunk: int = 0) -> Float[Array, ""]:
    """v^T F v by forward mode alone: twice the quadratic model of the mean KL of a step v."""
    return weighted_sum(batch.weight, fisher_quadratics(policy, batch, v, chunk=chunk))


def fisher_quadratics(policy: Policy, batch: Batch, v: Vector, *, chunk: int = 0) -> Float[Array, " B"]:
    """(J v)^T M (J v) of each row: twice the quadratic model of the KL of a step v in each state."""
    theta, rebuild = flatten(policy)

    def quadratic(part: Batch) -> Array:
        _, tangent, here = jax.jvp(_parameters_of(rebuild, part), (theta,), (v,), has_aux=True)
        image = eqx.filter(here.metric(eqx.combine(tangent, here)), eqx.is_inexact_array)
        products = jax.tree.map(lambda a, b: jnp.sum(a * b, axis=tuple(range(1, a.ndim))), tangent, image)
        return jax.tree.reduce(jnp.add, products)

    return _map_over_chunks(quadratic, batch, chunk)


def tabular_advantage(policy: TabularPolicy, batch: Batch) -> Float[Array, "N A"]:
    """A(s, a) of every state and action from the rows of a batch, centred to sum_a pi(a|s) A(s, a) = 0.

    On the enumerated rows of a finite MDP it is what they hold. On samples it is the row's share of the
    surrogate over the weight of its state, sum of base A / sum of weight, whose expectation is A(s, a).
    In states without weight it is the sum over their rows: A(s, a) where enumerated, 0 where never seen.
    """
    base = jnp.where(jnp.isneginf(batch.log_base), 0, jnp.exp(batch.log_base))
    zero = jnp.zeros_like(policy.logits)
    weight = zero[:, 0].at[batch.observation].add(batch.weight)[:, None]
    share = jnp.where(weight[batch.observation, 0] > 0, base, 1)
    total = zero.at[batch.observation, batch.action].add(share * batch.advantage)
    advantage = total / jnp.where(weight > 0, weight, 1)
    probs = policy(jnp.arange(len(zero))).probs()
    return advantage - jnp.sum(probs * advantage, axis=-1, keepdims=True)


def tabular_natural_gradient(policy: TabularPolicy, batch: Batch) -> Float[Array, "N A"]:
    """F^-1 g for a table of logits, in closed form: x(s, a) = A(s, a); 0 in states without weight.

    F is block diagonal with blocks d(s) (diag(pi) - pi pi^T), and the gradient's part of state s is that
    block times A(s, .), so the advantages solve F x = g (Kakade 2001, theorem 1; Agarwal et al. 2021,
    lemma 15).
    """
    weight = jnp.zeros_like(policy.logits[:, 0]).at[batch.observation].add(batch.weight)
    return jnp.where(weight[:, None] > 0, tabular_advantage(policy, batch), 0)


class Movement(NamedTuple):
    """How far a policy is from the batch's old one, and what that is worth on the batch.

    Attributes:
        surrogate_gain: surrogate minus that of the old policy, sum of base (pi' - pi) A, in units of
            `batch.advantage`.
        kl: mean over states of KL(old || new), nats.
        reverse_kl: mean over states of KL(new || old), nats.
        max_kl: largest KL(old || new) over states of positive weight, nats.
        max_reverse_kl: the largest KL(new || old), nats.
        tv: mean over states of total variation (an upper bound where the head has no closed form).
        max_tv: the largest.
        entropy: mean entropy of the new policy, nats.
        effective_sample_size: (sum m)^2 / sum m^2 with m = base pi' of each row, in rows: for samples of
            equal weight, that of the importance ratios.
    """

    surrogate_gain: Float[Array, ""]
    kl: Float[Array, ""]
    reverse_kl: Float[Array, ""]
    max_kl: Float[Array, ""]
    max_reverse_kl: Float[Array, ""]
    tv: Float[Array, ""]
    max_tv: Float[Array, ""]
    entropy: Float[Array, ""]
    effective_sample_size: Float[Array, ""]


def movement(policy: Policy, batch: Batch, *, chunk: int = 0) -> Movement:
    """Compare `policy` with the batch's old one on every row."""

    def each_row(part: Batch) -> Any:
        new = policy(part.observation, part.mask)
        new_mass = ratio_mass(part, new.log_prob(part.action))
        old_mass = ratio_mass(part, part.old.log_prob(part.action))
        gain = jnp.where(new_mass == old_mass, 0, new_mass - old_mass) * part.advantage
        return gain, part.old.kl(new), new.kl(part.old), part.old.tv(new), new.entropy(), new_mass

    gain, kl, reverse_kl, tv, entropy, mass = _map_over_chunks(each_row, batch, chunk)
    seen = batch.weight > 0
    mean_kl, mean_reverse_kl, mean_tv, mean_entropy = weighted_sums(batch.weight, kl, reverse_kl, tv, entropy)
    max_kl, max_reverse_kl, max_tv = jnp.max(jnp.where(seen, jnp.stack([kl, reverse_kl, tv]), 0), axis=1)
    return Movement(
        surrogate_gain=jnp.sum(gain),
        kl=mean_kl,
        reverse_kl=mean_reverse_kl,
        max_kl=max_kl,
        max_reverse_kl=max_reverse_kl,
        tv=mean_tv,
        max_tv=max_tv,
        entropy=mean_entropy,
        effective_sample_size=_effective_sample_size(mass),
    )


def unmoved(batch: Batch) -> Movement:
    """`movement` of the old policy itself, from what the batch holds."""
    zero = jnp.zeros_like(batch.weight[0])
    return Movement(
        surrogate_gain=zero,
        kl=zero,
        reverse_kl=zero,
        max_kl=zero,
        max_reverse_kl=zero,
        tv=zero,
        max_tv=zero,
        entropy=weighted_sum(batch.weight, batch.old.entropy()),
        effective_sample_size=_effective_sample_size(ratio_mass(batch, batch.old.log_prob(batch.action))),
    )


def _effective_sample_size(mass: Float[Array, " B"]) -> Float[Array, ""]:
    squares = jnp.sum(mass**2)
    return jnp.where(squares > 0, jnp.sum(mass) ** 2 / jnp.where(squares > 0, squares, 1), 0)


def subsample(batch: Batch, share: float, *, fewest: int = 1) -> Batch:
    """One row of every k, with weights that again sum to 1; the whole batch for share 1.

    k is round(1/share), or less where that would leave fewer than `fewest` rows. Over several devices it is one row of
    every k of each.
    """
    stride = max(1, min(round(1 / share), batch.size // fewest))
    if stride == 1:
        return batch
    # Rows of several environments take turns: always the first of k would be the same environments for ever where
    # their number is a multiple of k.
    size = block_size(batch.size)
    block = np.arange(-(-size // stride))
    part = rows(batch, np.minimum(block * stride + block % stride, size - 1))
    total = jnp.maximum(jnp.sum(part.weight), jnp.finfo(part.weight.dtype).tiny)
    return eqx.tree_at(lambda b: b.weight, part, part.weight / total)


def _parameters_of(rebuild: Callable[[Vector], Policy], part: Batch) -> Callable[[Vector], tuple[Any, Any]]:
    """theta -> (the distribution's parameters on these rows, the distribution)."""

    def parameters(theta: Vector) -> tuple[Any, Any]:
        distribution = rebuild(theta)(part.observation, part.mask)
        return eqx.filter(distribution, eqx.is_inexact_array), distribution

    return parameters


def _scale_rows(weight: Array, leaf: Array) -> Array:
    return leaf * weight.reshape(weight.shape + (1,) * (leaf.ndim - weight.ndim))


def _evenly(batch: Batch, chunk: int) -> tuple[int, int]:
    """How many chunks of at most `chunk` rows the batch makes, and the rows of each, as equal as they can be; over
    several devices those that each has of it, at least one."""
    size = block_size(batch.size)
    count = -(-size // max(block_size(chunk), 1))
    return count, -(-size // count)


def _chunk(batch: Batch, number: Array, length: int) -> tuple[Batch, Array]:
    """Chunk `number` of `length` rows and where it begins.

    It is cut out where it is used: a batch that is laid out anew for a loop would be in memory twice. The last chunk
    ends with the batch, so it may begin with rows that the one before has had.
    """
    begin = jnp.minimum(number * length, block_size(batch.size) - length)
    return jax.tree.map(lambda leaf: cut(leaf, begin, length), batch), begin


def _sum_over_chunks(function: Callable[[Batch], Array], batch: Batch, chunk: int) -> Array:
    if not chunk or chunk >= batch.size:
        return function(batch)
    count, length = _evenly(batch, chunk)

    def add(number, total):
        part, begin = _chunk(batch, number, length)
        fresh = in_every_block(begin + jnp.arange(length) >= number * length)
        rows_once = (
            jnp.where(fresh, part.weight, 0),
            jnp.where(fresh, part.log_base, -jnp.inf),
            jnp.where(fresh, part.advantage, 0),
        )
        return total + function(eqx.tree_at(lambda b: (b.weight, b.log_base, b.advantage), part, rows_once))

    part = jax.eval_shape(lambda: _chunk(batch, jnp.asarray(0), length)[0])
    shape = jax.eval_shape(function, part)
    return jax.lax.fori_loop(0, count, add, jnp.zeros(shape.shape, shape.dtype))


def _map_over_chunks(function: Callable[[Batch], Any], batch: Batch, chunk: int) -> Any:
    """`function`'s row-wise results [B] for the whole batch."""
    if not chunk or chunk >= batch.size:
        return function(batch)
    count, length = _evenly(batch, chunk)

    def write(number, results):
        part, begin = _chunk(batch, number, length)
        return jax.tree.map(lambda whole, piece: put(whole, piece, begin), results, function(part))

    shape = jax.eval_shape(function, batch)
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape)
    return jax.lax.fori_loop(0, count, write, nothing)

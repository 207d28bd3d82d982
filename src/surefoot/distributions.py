"""Action distributions: what a policy's outputs mean.

Each class is final, batched over any leading axes, and joint over its action dimensions: log
probabilities, entropies, divergences and total variation are sums or joint quantities, never means over
dimensions. Its floating-point fields are its parameters; `metric` applies M, the Hessian at coincidence of
KL(self || other) in the other's parameters, so that the Fisher matrix of any policy is E_s[J^T M J] with J
the Jacobian of these parameters (theory: Martens 2020, "New insights and perspectives on the natural
gradient method", section 9; Schulman et al. 2015, appendix C).

Convention: 0 log 0 = 0 and 0 * inf = 0, so no quantity is NaN at probability 0. Divergences are in nats.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from functools import reduce
from itertools import accumulate, pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from surefoot.arrays import namespace

_ENUMERATE_UP_TO = 1024


class Distribution(eqx.Module):
    """Abstract: a distribution over one environment's action, batched over leading axes `...`."""

    @abstractmethod
    def noise(self, key: PRNGKeyArray, leading: tuple[int, ...] = ()) -> Array:
        """What chance contributes to `sample_from`, for `leading` more axes in front.

        It depends on the distribution's shape and number type alone, so it can be drawn before the
        parameters are known, for many steps at once; `jax.ShapeDtypeStruct` parameters will do.
        """

    @abstractmethod
    def sample_from(self, noise: Array) -> Array:
        """The action that `noise` leads to, for each leading index."""

    def sample(self, key: PRNGKeyArray) -> Array:
        """One action for each leading index."""
        return self.sample_from(self.noise(key))

    @abstractmethod
    def mode(self) -> Array:
        """The most probable action: what a deterministic policy does."""

    @abstractmethod
    def log_prob(self, action: Array) -> Float[Array, ...]:
        """Log probability (density for continuous actions) of `action`; -inf outside the support."""

    @abstractmethod
    def entropy(self) -> Float[Array, ...]:
        """Entropy in nats (differential for continuous actions)."""

    @abstractmethod
    def kl(self, new: Distribution) -> Float[Array, ...]:
        """KL(self || new) in nats, for `new` of the same class."""

    @abstractmethod
    def tv(self, new: Distribution) -> Float[Array, ...]:
        """Total variation (half the L1 distance) to `new`; each class says where it is exact."""

    @abstractmethod
    def metric(self, tangent: Distribution) -> Distribution:
        """M applied to a tangent of the parameters: `tangent` and the result have this class's structure."""


class Categorical(Distribution):
    """One of K actions. An action whose `mask` is False, or whose logit is -inf, has probability 0."""

    logits: Float[Array, "... K"]
    mask: Bool[Array, "... K"] | None = None

    def log_probs(self) -> Float[Array, "... K"]:
        """Normalised log probabilities; -inf where an action is impossible."""
        if self.mask is None:
            return jax.nn.log_softmax(self.logits, axis=-1)
        # A finite stand-in keeps the derivative of masked entries zero instead of inf - inf.
        low = jnp.finfo(self.logits.dtype).min / 2
        log_probs = jax.nn.log_softmax(jnp.where(self.mask, self.logits, low), axis=-1)
        return jnp.where(self.mask, log_probs, -jnp.inf)

    def probs(self) -> Float[Array, "... K"]:
        """Probabilities, summing to 1 over the last axis."""
        return jnp.exp(self.log_probs())

    def noise(self, key: PRNGKeyArray, leading: tuple[int, ...] = ()) -> Float[Array, "... K"]:
        return jax.random.gumbel(key, (*leading, *self.logits.shape), self.logits.dtype)

    def sample_from(self, noise: Float[Array, "... K"]) -> Int[Array, ...]:
        return categorical_action(self.logits, self.mask, noise)

    def mode(self) -> Int[Array, ...]:
        return categorical_action(self.logits, self.mask, None)

    def log_prob(self, action: Int[Array, ...]) -> Float[Array, ...]:
        chosen = jnp.asarray(action, jnp.int32)[..., None]
        return jnp.take_along_axis(self.log_probs(), chosen, axis=-1)[..., 0]

    def entropy(self) -> Float[Array, ...]:
        log_probs = self.log_probs()
        return -_expectation(jnp.exp(log_probs), log_probs)

    def kl(self, new: Categorical) -> Float[Array, ...]:
        return jnp.sum(_kl_terms(self.log_probs(), new.log_probs()), axis=-1)

    def tv(self, new: Categorical) -> Float[Array, ...]:
        """Exact."""
        return 0.5 * jnp.sum(jnp.abs(self.probs() - new.probs()), axis=-1)

    def metric(self, tangent: Categorical) -> Categorical:
        """M = diag(p) - p p^T in the logits."""
        probs = self.probs()
        centred = tangent.logits - jnp.sum(probs * tangent.logits, axis=-1, keepdims=True)
        return Categorical(probs * centred, self.mask)


class MultiCategorical(Distribution):
    """Several independent categorical choices; the logits of all lie side by side in the last axis."""

    logits: Float[Array, "... K"]
    mask: Bool[Array, "... K"] | None
    sizes: tuple[int, ...] = eqx.field(static=True)

    def parts(self) -> list[Categorical]:
        """The independent choices, one Categorical each."""
        bounds = list(pairwise(accumulate(self.sizes, initial=0)))
        return [
            Categorical(self.logits[..., a:b], None if self.mask is None else self.mask[..., a:b]) for a, b in bounds
        ]

    def noise(self, key: PRNGKeyArray, leading: tuple[int, ...] = ()) -> Float[Array, "... K"]:
        return jax.random.gumbel(key, (*leading, *self.logits.shape), self.logits.dtype)

    def sample_from(self, noise: Float[Array, "... K"]) -> Int[Array, "... D"]:
        return multi_categorical_action(self.logits, self.mask, noise, self.sizes)

    def mode(self) -> Int[Array, "... D"]:
        return multi_categorical_action(self.logits, self.mask, None, self.sizes)

    def log_prob(self, action: Int[Array, "... D"]) -> Float[Array, ...]:
        return _sum(part.log_prob(action[..., i]) for i, part in enumerate(self.parts()))

    def entropy(self) -> Float[Array, ...]:
        return _sum(part.entropy() for part in self.parts())

    def kl(self, new: MultiCategorical) -> Float[Array, ...]:
        return _sum(old.kl(other) for old, other in zip(self.parts(), new.parts(), strict=True))

    def tv(self, new: MultiCategorical) -> Float[Array, ...]:
        """Exact up to 1,024 joint actions; beyond, the upper bound 1 - prod(1 - TV_i)."""
        return _product_tv([p.probs() for p in self.parts()], [p.probs() for p in new.parts()])

    def metric(self, tangent: MultiCategorical) -> MultiCategorical:
        """Block diagonal: M of each choice."""
        blocks = [p.metric(t).logits for p, t in zip(self.parts(), tangent.parts(), strict=True)]
        return MultiCategorical(jnp.concatenate(blocks, axis=-1), self.mask, self.sizes)


class Bernoulli(Distribution):
    """D independent yes-or-no choices, as 0/1 integers."""

    logits: Float[Array, "... D"]

    def noise(self, key: PRNGKeyArray, leading: tuple[int, ...] = ()) -> Float[Array, "... D"]:
        return jax.random.logistic(key, (*leading, *self.logits.shape), self.logits.dtype)

    def sample_from(self, noise: Float[Array, "... D"]) -> Int[Array, "... D"]:
        return bernoulli_action(self.logits, noise)

    def mode(self) -> Int[Array, "... D"]:
        return bernoulli_action(self.logits, None)

    def log_prob(self, action: Int[Array, "... D"]) -> Float[Array, ...]:
        yes = jnp.asarray(action) > 0
        return jnp.sum(jax.nn.log_sigmoid(jnp.where(yes, self.logits, -self.logits)), axis=-1)

    def entropy(self) -> Float[Array, ...]:
        return -jnp.sum(
            _product(jax.nn.sigmoid(self.logits), jax.nn.log_sigmoid(self.logits))
            + _product(jax.nn.sigmoid(-self.logits), jax.nn.log_sigmoid(-self.logits)),
            axis=-1,
        )

    def kl(self, new: Bernoulli) -> Float[Array, ...]:
        yes = _kl_terms(jax.nn.log_sigmoid(self.logits), jax.nn.log_sigmoid(new.logits))
        no = _kl_terms(jax.nn.log_sigmoid(-self.logits), jax.nn.log_sigmoid(-new.logits))
        return jnp.sum(yes + no, axis=-1)

    def tv(self, new: Bernoulli) -> Float[Array, ...]:
        """Exact up to 1,024 joint actions; beyond, the upper bound 1 - prod(1 - TV_i)."""

        def pairs(logits: Array) -> list[Array]:
            both = jnp.stack([jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)], axis=-1)
            return [both[..., i, :] for i in range(logits.shape[-1])]

        return _product_tv(pairs(self.logits), pairs(new.logits))

    def metric(self, tangent: Bernoulli) -> Bernoulli:
        """M = p(1 - p) in each logit."""
        p, q = jax.nn.sigmoid(self.logits), jax.nn.sigmoid(-self.logits)
        return Bernoulli(p * q * tangent.logits)


class DiagGaussian(Distribution):
    """A normal distribution with independent dimensions, D of them."""

    mean: Float[Array, "... D"]
    log_std: Float[Array, "... D"]

    def noise(self, key: PRNGKeyArray, leading: tuple[int, ...] = ()) -> Float[Array, "... D"]:
        return jax.random.normal(key, (*leading, *self.mean.shape), self.mean.dtype)

    def sample_from(self, noise: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return gaussian_action(self.mean, self.log_std, noise)

    def mode(self) -> Float[Array, "... D"]:
        return self.mean

    def log_prob(self, action: Float[Array, "... D"]) -> Float[Array, ...]:
        z = (action - self.mean) * jnp.exp(-self.log_std)
        return -jnp.sum(0.5 * z**2 + self.log_std + 0.5 * jnp.log(2 * jnp.pi).astype(z.dtype), axis=-1)

    def entropy(self) -> Float[Array, ...]:
        return jnp.sum(self.log_std + 0.5 * (1 + jnp.log(2 * jnp.pi)).astype(self.log_std.dtype), axis=-1)

    def kl(self, new: DiagGaussian) -> Float[Array, ...]:
        shift = (self.mean - new.mean) * jnp.exp(-new.log_std)
        # With t = log s - log s', the scale part is (e^{2t} - 1 - 2t) / 2, which expm1 keeps exact near 0.
        t = self.log_std - new.log_std
        return jnp.sum(0.5 * (jnp.expm1(2 * t) - 2 * t + shift**2), axis=-1)

    def tv(self, new: DiagGaussian) -> Float[Array, ...]:
        """Exact in one dimension, and in any number where the standard deviations are equal.

        Elsewhere an upper bound: TV <= TV(N(m,s), N(m',s)) + TV(N(m',s), N(m',s')), the first exact, the
        second bounded by 1 - prod(1 - TV_i) over its dimensions.
        """
        if self.mean.shape[-1] == 1:
            return _normal_tv(self.mean, self.log_std, new.mean, new.log_std)[..., 0]
        distance = jnp.linalg.norm((self.mean - new.mean) * jnp.exp(-self.log_std), axis=-1)
        shift = erf(distance / (2 * jnp.sqrt(2.0).astype(distance.dtype)))
        scale = 1 - jnp.prod(1 - _normal_tv(new.mean, self.log_std, new.mean, new.log_std), axis=-1)
        return jnp.minimum(1, shift + scale)

    def metric(self, tangent: DiagGaussian) -> DiagGaussian:
        """M = diag(1/s^2, 2) in (mean, log standard deviation)."""
        return DiagGaussian(tangent.mean * jnp.exp(-2 * self.log_std), 2 * tangent.log_std)


# Sampling as plain functions of arrays, NumPy's or JAX's: what acts on the host has no time for objects.


def categorical_action(logits: Any, mask: Any, noise: Any) -> Any:
    """The largest of logits + Gumbel noise where allowed: distributed as softmax(logits) (Gumbel 1954).

    Without noise (None), here and below, the mode.
    """
    scores = _allowed(logits, mask, noise)
    return scores.argmax(axis=-1).astype(np.int32)


def multi_categorical_action(logits: Any, mask: Any, noise: Any, sizes: tuple[int, ...]) -> Any:
    """A choice for each group of `sizes` logits."""
    scores = _allowed(logits, mask, noise)
    parts = [scores[..., a:b].argmax(axis=-1) for a, b in pairwise(accumulate(sizes, initial=0))]
    if scores.ndim == 1 and isinstance(scores, np.ndarray):
        return np.array(parts, np.int32)  # NumPy stacks three times as slowly
    return namespace(logits).stack(parts, axis=-1).astype(np.int32)


def _allowed(logits: Any, mask: Any, noise: Any) -> Any:
    scores = logits if noise is None else logits + noise
    return scores if mask is None else namespace(logits).where(mask, scores, -np.inf)


def bernoulli_action(logits: Any, noise: Any) -> Any:
    """1 where logits + logistic noise is positive."""
    return ((logits if noise is None else logits + noise) > 0).astype(np.int32)


def gaussian_action(mean: Any, log_std: Any, noise: Any) -> Any:
    """Mean + standard deviation times normal noise."""
    return mean + namespace(log_std).exp(log_std) * noise


def _sum(parts: Iterable[Array]) -> Array:
    return reduce(jnp.add, parts)


def _product(weight: Array, value: Array) -> Array:
    """weight * value with 0 * inf = 0, in the value and in derivatives."""
    return weight * jnp.where(weight > 0, value, 0)


def _expectation(probs: Array, values: Array) -> Array:
    return jnp.sum(_product(probs, values), axis=-1)


def _kl_terms(old_log: Array, new_log: Array) -> Array:
    """p log(p/q) - p + q of each outcome: sums to KL(p || q) over all of them, and no term is negative.

    The plain p log(p/q) has terms of both signs, whose rounding can leave a small KL below 0.
    """
    p, q = jnp.exp(old_log), jnp.exp(new_log)
    supported = p > 0
    # -inf - -inf would put NaN into derivatives even where it is not selected.
    u = jnp.where(supported, old_log, 0) - jnp.where(supported, new_log, 0)
    excess = u + jnp.expm1(-u)
    # Not jnp.maximum, whose derivative at equality is a half.
    return jnp.where(supported, p * jnp.where(excess < 0, 0, excess), q)


def _product_tv(old: list[Array], new: list[Array]) -> Array:
    """TV of two products of categoricals, given the factors' probabilities."""
    joint = reduce(lambda size, factor: size * factor.shape[-1], old, 1)
    if joint <= _ENUMERATE_UP_TO:

        def outer(left: Array, right: Array) -> Array:
            return (left[..., :, None] * right[..., None, :]).reshape(*left.shape[:-1], -1)

        return 0.5 * jnp.sum(jnp.abs(reduce(outer, old) - reduce(outer, new)), axis=-1)
    agree = [1 - 0.5 * jnp.sum(jnp.abs(p - q), axis=-1) for p, q in zip(old, new, strict=True)]
    return 1 - reduce(jnp.multiply, agree)


def _normal_tv(mean: Array, log_std: Array, new_mean: Array, new_log_std: Array) -> Array:
    """TV of one-dimensional normal distributions, elementwise, from where their densities cross.

    In units of the narrower one (mean 0, standard deviation 1) the other has mean m >= 0 and standard
    deviation s >= 1, and the densities are equal where x^2 - ((x - m)/s)^2 = 2 log s. Of the two roots
    (-m +- s sqrt(m^2 + 2 (s^2 - 1) log s)) / (s^2 - 1) the one that cancels is taken from the product
    of the roots, so nearly equal standard deviations lose nothing; equal ones have one root, m/2.
    """
    # Seen from the narrower one: from the wider one the two crossings may fall into one number.
    wider = jnp.maximum(log_std, new_log_std)
    narrower = jnp.minimum(log_std, new_log_std)
    # Beyond these the distance is 1 within rounding, and the squares below would overflow.
    t = jnp.minimum(wider - narrower, -jnp.log(jnp.finfo(mean.dtype).eps))
    s = jnp.exp(t)
    m = jnp.minimum(jnp.abs(new_mean - mean) * jnp.exp(-narrower), 1e4 * s)
    a = jnp.expm1(2 * t)
    c = -(m**2) - 2 * s**2 * t
    # a x^2 + 2 m x + c = 0, discriminant (divided by 4) m^2 - a c = s^2 (m^2 + 2 a t) >= 0
    root = s * jnp.sqrt(jnp.maximum(m**2 + 2 * a * t, 0))
    q = -(m + jnp.where(m >= 0, root, -root))
    safe_a = jnp.where(a == 0, 1, a)
    far = jnp.where(a == 0, -jnp.sign(jnp.where(m == 0, 1, m)) * jnp.inf, q / safe_a)
    near = jnp.where(q == 0, 0, c / jnp.where(q == 0, 1, q))
    low, high = jnp.minimum(near, far), jnp.maximum(near, far)
    half = jnp.sqrt(0.5).astype(m.dtype)

    def mass(scale: Array, centre: Array) -> Array:
        return 0.5 * (erf((high - centre) / scale * half) - erf((low - centre) / scale * half))

    return jnp.clip(jnp.abs(mass(jnp.ones_like(s), jnp.zeros_like(m)) - mass(s, m)), 0, 1)

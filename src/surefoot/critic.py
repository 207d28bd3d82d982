"""The critic: observations to values in reward units, and how it is fitted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from surefoot import config
from surefoot.batch import shuffled_rows
from surefoot.convolution import Network, make_network
from surefoot.networks import Normaliser
from surefoot.sharding import block_size, in_minibatches, minibatch_size, taken
from surefoot.spaces import Encoder, make_encoder


class Critic(eqx.Module):
    """V(s) = mean + std * network(normalised s), so that the network works in units of order 1.

    `mean` and `std` follow the value targets; when they move, the last layer is changed so that V stays
    the same function (van Hasselt et al. 2016, "Learning values across many orders of magnitude",
    proposition 1).
    """

    normaliser: Normaliser
    network: Network
    mean: Float[Array, ""]
    std: Float[Array, ""]
    encoder: Encoder = eqx.field(static=True)

    def __call__(self, observation: Any) -> Float[Array, ...]:
        """Values in reward units, for observations of any leading axes."""
        return self.mean + self.std * self.standardised(self.features(observation))

    def features(self, observation: Any) -> Float[Array, "... width"]:
        """Normalised feature vectors."""
        return self.normaliser(self.encoder(observation, self.mean.dtype))

    def standardised(self, features: Float[Array, "... width"]) -> Float[Array, ...]:
        """(V - mean) / std from feature vectors."""
        return self.network(features)[..., 0]

    def observed(self, observation: Any, real: Bool[Array, ...]) -> Critic:
        """The same critic with a normaliser that has also seen these observations where `real`."""
        features = self.encoder(observation, self.mean.dtype)
        return eqx.tree_at(lambda c: c.normaliser, self, self.normaliser.observe(features, real))

    def rescaled(self, mean: Float[Array, ""], std: Float[Array, ""]) -> Critic:
        """The same function V with other units inside."""
        last = self.network.dense
        weight = last.weights[-1] * (self.std / std)
        bias = (last.biases[-1] * self.std + self.mean - mean) / std
        return eqx.tree_at(
            lambda c: (c.network.dense.weights[-1], c.network.dense.biases[-1], c.mean, c.std),
            self,
            (weight, bias, mean, std),
        )


class CriticState(NamedTuple):
    """Everything that the fit carries from one update to the next."""

    critic: Critic
    optimiser: optax.OptState
    fits: Array  # how many fits there were, int32


class CriticReport(NamedTuple):
    """How well the critic did, over real transitions with the batch's weights.

    Attributes:
        explained_variance: 1 - Var(target - V)/Var(target) before the fit; 1 is perfect, 0 or less means
            that the critic explains nothing. 0 where the targets do not vary.
        loss: mean squared error after the fit, in units of the targets' running variance.
        value_mean: mean value before the fit, reward units.
        target_mean: mean target, reward units.
        target_std: running standard deviation of the targets that the critic works in, reward units.
    """

    explained_variance: Float[Array, ""]
    loss: Float[Array, ""]
    value_mean: Float[Array, ""]
    target_mean: Float[Array, ""]
    target_std: Float[Array, ""]


def make_critic(
    observation_space: Any,
    settings: config.Critic,
    key: PRNGKeyArray,
    *,
    normalise: bool = True,
    dtype: np.dtype | type = np.float32,
) -> CriticState:
    """A critic that says 0 everywhere until it is fitted, and its optimiser's state.

    Raises UnsupportedSpace, and SettingError for convolutions that the observations have no room for.
    """
    encoder = make_encoder(observation_space)
    critic = Critic(
        normaliser=Normaliser.identity(encoder.normalised & normalise, dtype),
        network=make_network(encoder, settings, 1, final_gain=0.0, key=key, dtype=dtype),
        mean=jax.device_put(np.zeros((), dtype)),
        std=jax.device_put(np.ones((), dtype)),
        encoder=encoder,
    )
    # Adam begins with zeros; asking for their shapes alone spares a compiled program for each.
    moments = jax.tree.map(
        lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype)),
        jax.eval_shape(lambda: _optimiser(settings).init(_flat(critic.network)[0])),
    )
    return CriticState(critic, moments, jax.device_put(np.zeros((), np.int32)))


def _optimiser(settings: config.Critic) -> optax.GradientTransformation:
    return optax.adam(settings.step_size, eps=1e-5)


def _flat(network: Network) -> tuple[Float[Array, " P"], Callable[[Float[Array, " P"]], Network]]:
    """The parameters as one vector, and the network as a function of it: Adam on one array is a third of the time of
    Adam on eight small ones."""
    parameters, rest = eqx.partition(network, eqx.is_inexact_array)
    vector, unflatten = ravel_pytree(parameters)
    return vector, lambda vector: eqx.combine(unflatten(vector), rest)


def fit(
    state: CriticState,
    settings: config.Critic,
    observation: Any,
    target: Float[Array, " B"],
    weight: Float[Array, " B"],
    key: PRNGKeyArray,
) -> tuple[CriticState, CriticReport]:
    """Regress V on `target` (reward units) by minibatch Adam on the weighted squared error.

    Arguments:
        observation: tree of arrays [B, ...].
        target: value targets, [B]; entries of weight 0 are ignored.
        weight: nonnegative, [B]; rows of weight 0 take no part.

    The units follow the targets' mean and variance: exactly for the first ten fits, with a memory of
    about ten fits after that.
    """
    critic = state.critic
    weight = weight / jnp.maximum(jnp.sum(weight), jnp.finfo(weight.dtype).tiny)
    counts = weight > 0
    target = jnp.where(counts, target, 0)
    # Zero times NaN is NaN, also in derivatives: rows of weight 0 are emptied before they are used.
    features = jnp.where(counts[:, None], critic.features(observation), 0)
    value = critic.mean + critic.std * critic.standardised(features)
    mean, variance = _moments(target, weight)
    _, error = _moments(target - value, weight)
    explained = jnp.where(variance > 0, 1 - error / jnp.where(variance > 0, variance, 1), 0)

    critic = _follow(critic, mean, variance, state.fits)
    goal = (target - critic.mean) / critic.std
    optimiser = _optimiser(settings)
    rows = target.shape[0]
    size = minibatch_size(settings.minibatch, rows)
    count = rows // size

    vector, rebuild = _flat(critic.network)

    def loss(vector: Array, features: Array, goal: Array, weight: Array) -> Array:
        squared = (rebuild(vector)(features)[..., 0] - goal) ** 2
        return jnp.sum(weight * squared) / jnp.maximum(jnp.sum(weight), jnp.finfo(weight.dtype).tiny)

    def step(carry, minibatch):
        vector, moments = carry
        change, moments = optimiser.update(jax.grad(loss)(vector, *minibatch), moments, vector)
        return (vector + change, moments), None

    def epoch(carry, order):
        minibatches = [in_minibatches(taken(array, order), count) for array in (features, goal, weight)]
        return jax.lax.scan(step, carry, minibatches)

    # The few rows that do not fill a minibatch sit out a pass; they are others in the next.
    orders = shuffled_rows(key, rows, settings.epochs)[..., : block_size(count * size)]
    (vector, moments), _ = jax.lax.scan(epoch, (vector, state.optimiser), orders)
    report = CriticReport(
        explained_variance=explained,
        loss=loss(vector, features, goal, weight),
        value_mean=jnp.sum(weight * value),
        target_mean=mean,
        target_std=critic.std,
    )
    critic = eqx.tree_at(lambda c: c.network, critic, rebuild(vector))
    return CriticState(critic, moments, state.fits + 1), report


def _moments(x: Float[Array, " B"], weight: Float[Array, " B"]) -> tuple[Array, Array]:
    """Mean and variance; a spread that is only the rounding of the mean is 0. The weights sum to 1."""
    mean = jnp.sum(weight * x)
    mean = mean + jnp.sum(weight * (x - mean))
    variance = jnp.sum(weight * (x - mean) ** 2)
    rounding = 4 * jnp.finfo(mean.dtype).eps * jnp.abs(mean)
    return mean, jnp.where(variance > rounding**2, variance, 0)


def _follow(critic: Critic, mean: Array, variance: Array, fits: Array) -> Critic:
    """The critic in units that have also seen targets of this mean and variance."""
    first = fits == 0
    share = 1 / jnp.minimum(fits + 1, 10).astype(mean.dtype)
    shift = mean - critic.mean
    old = jnp.where(first, 0, critic.std**2)
    merged = (1 - share) * old + share * variance + share * (1 - share) * shift**2
    # Targets that never vary keep the old unit: one of nearly 0 would blow the last layer up.
    std = jnp.where(merged > 0, jnp.sqrt(jnp.where(merged > 0, merged, 1)), critic.std)
    # There is nothing to preserve before the first fit, and 0 would be far off in units with an offset.
    before = eqx.tree_at(lambda c: (c.mean, c.std), critic, (mean, std))
    before = jax.tree.map(lambda new, kept: jnp.where(first, new, kept), before, critic)
    return before.rescaled(critic.mean + share * shift, std)

"""What policy and critic are made of: a perceptron and a normaliser of its inputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from surefoot.arrays import generator, namespace

Function = Callable[[Any], Any]
ACTIVATIONS: dict[str, Function] = {"tanh": jnp.tanh, "relu": jax.nn.relu, "silu": jax.nn.silu, "elu": jax.nn.elu}
_ON_THE_HOST: dict[str, Function] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
}

CLIP = 10.0


class Perceptron(eqx.Module):
    """A multilayer perceptron on batches of any leading axes.

    Weights are orthogonal with gain sqrt(2) in hidden layers and `final_gain` in the last (Saxe et al.
    2014; the gains are those of Andrychowicz et al. 2021), biases zero.
    """

    weights: list[Float[Array, "fan_in fan_out"]]
    biases: list[Float[Array, " fan_out"]]
    activation: str = eqx.field(static=True)

    def __init__(
        self,
        sizes: tuple[int, ...],
        activation: str,
        *,
        final_gain: float,
        key: PRNGKeyArray,
        dtype: np.dtype | type = np.float32,
    ):
        """`sizes` are the widths from input to output."""
        layers = list(pairwise(sizes))
        gains = [float(np.sqrt(2))] * (len(layers) - 1) + [final_gain]
        # On the host: a compiler would take two seconds over what NumPy does in a millisecond.
        chance = generator(key)
        self.weights = [
            jax.device_put((gain * orthogonal(chance, *shape)).astype(dtype))
            for gain, shape in zip(gains, layers, strict=True)
        ]
        self.biases = [jax.device_put(np.zeros(fan_out, dtype)) for _, fan_out in layers]
        self.activation = activation

    def __call__(self, x: Float[Array, "... fan_in"]) -> Float[Array, "... fan_out"]:
        """The outputs for inputs of any leading axes."""
        return self.function()(x)

    def with_inputs(self, scale: Float[Array, " fan_in"], shift: Float[Array, " fan_in"]) -> Perceptron:
        """The perceptron that makes of x what this one makes of scale * x + shift: its first layer takes both over."""
        first, bias = self.weights[0], self.biases[0]
        changed = scale[:, None] * first, bias + shift @ first
        return eqx.tree_at(lambda p: (p.weights[0], p.biases[0]), self, changed)

    @property
    def dense(self) -> Perceptron:
        """The fully connected layers, of which the last gives the outputs: all of it."""
        return self

    def function(self) -> Function:
        """What calling it does, without Equinox's attributes, which take microseconds each."""
        return partial(perceptron, weights=self.weights, biases=self.biases, activation=self.activation)


def perceptron(x: Any, weights: list, biases: list, activation: str) -> Any:
    """The outputs of layers with these weights, in NumPy if they are NumPy's."""
    apply = activation_of(activation, weights[0])
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = apply(x @ weight + bias)
    return x @ weights[-1] + biases[-1]


def activation_of(name: str, like: Any) -> Function:
    """The activation of this name, in NumPy for layers whose weights are NumPy's."""
    return (_ON_THE_HOST if namespace(like) is np else ACTIVATIONS)[name]


def orthogonal(generator: np.random.Generator, fan_in: int, fan_out: int) -> np.ndarray:
    """A uniformly random matrix with orthonormal rows or columns, whichever are fewer."""
    tall = generator.normal(size=(max(fan_in, fan_out), min(fan_in, fan_out)))
    q, r = np.linalg.qr(tall)
    q = q * np.sign(np.diag(r))  # without it some matrices would be likelier than others (Mezzadri 2007)
    return q if fan_in >= fan_out else q.T


class Normaliser(eqx.Module):
    """Running mean and variance of feature vectors, and their use.

    Frozen while an iteration collects and updates; `observe` returns the next one. Merging is that of
    Chan et al. 1983, and does not depend on how the features were split into batches beyond rounding.
    Features outside `active` (one-hot and binary ones) pass unchanged.
    """

    mean: Float[Array, " width"]
    variance: Float[Array, " width"]
    count: Float[Array, ""]
    active: tuple[bool, ...] = eqx.field(static=True)

    @staticmethod
    def identity(active: np.ndarray, dtype: np.dtype | type = np.float32) -> Normaliser:
        """A normaliser that has seen nothing: mean 0, variance 1."""
        width = len(active)
        flags = tuple(bool(flag) for flag in active)
        nothing = np.zeros(width, dtype), np.ones(width, dtype), np.zeros((), dtype)
        mean, variance, count = jax.device_put(nothing)
        return Normaliser(mean, variance, count, flags)

    def __call__(self, features: Float[Array, "... width"]) -> Float[Array, "... width"]:
        """(features - mean) / standard deviation, clipped to [-10, 10], where active."""
        return normalised(features, self.mean, self.std, self.where) if any(self.active) else features

    @property
    def where(self) -> np.ndarray | None:
        """Which features are active: bool [width]; None where all are."""
        return None if all(self.active) else np.asarray(self.active)

    @property
    def std(self) -> Float[Array, " width"]:
        """What features are divided by: the standard deviation, with a floor of 1e-4."""
        return namespace(self.variance).sqrt(self.variance + np.float32(1e-8))

    def observe(self, features: Float[Array, "... width"], real: Bool[Array, ...]) -> Normaliser:
        """The normaliser that has also seen `features` where `real` is True."""
        if not any(self.active):
            return self
        weight = real.astype(self.mean.dtype)[..., None]
        leading = tuple(range(features.ndim - 1))
        seen = jnp.sum(weight)
        safe = jnp.maximum(seen, 1)
        # Sums are taken around the running mean, so large offsets cost no digits; what a row that is not
        # real holds (NaN, say) is replaced before it meets a weight of zero.
        centred = jnp.where(real[..., None], features - self.mean, 0)
        shift = jnp.sum(weight * centred, axis=leading) / safe
        spread = jnp.sum(weight * (centred - shift) ** 2, axis=leading) / safe
        total = self.count + seen
        share = seen / jnp.maximum(total, 1)
        mean = self.mean + share * shift
        variance = (1 - share) * self.variance + share * spread + share * (1 - share) * shift**2
        return Normaliser(mean, variance, total, self.active)

    def seen_by(self, other: Normaliser) -> tuple[Float[Array, " width"], Float[Array, " width"]]:
        """(scale, shift) such that what this one gives is scale times what `other` gives, plus shift, but for clipping.

        1 and 0 where this one has seen nothing yet, where a feature is not active, and where the other's standard
        deviation is more than `CLIP` times this one's: the feature hardly varied so far (a contact that nothing had
        touched), what it now does lay beyond the clip, and there is nothing to be reproduced by a scale of thousands.
        """
        scale = other.std / self.std
        counts = jnp.asarray(self.active) & (self.count > 0) & (scale <= CLIP)
        return jnp.where(counts, scale, 1), jnp.where(counts, (other.mean - self.mean) / self.std, 0)


def normalised(features: Any, mean: Any, std: Any, active: np.ndarray | None) -> Any:
    """(features - mean) / std, clipped to [-10, 10], where active (None: everywhere); in NumPy if they are NumPy's."""
    xp = namespace(mean)
    scaled = xp.minimum(xp.maximum((features - mean) / std, -CLIP), CLIP)
    return scaled if active is None else xp.where(active, scaled, features)

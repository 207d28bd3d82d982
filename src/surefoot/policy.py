"""Policies: from an observation (and an action mask) to a distribution over actions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from surefoot import config
from surefoot.convolution import Network, make_network
from surefoot.distributions import Categorical, Distribution
from surefoot.networks import Normaliser, Perceptron, normalised
from surefoot.spaces import ActionMap, Encoder, Head, make_encoder, make_head


class Policy(eqx.Module):
    """Abstract: what a rule improves.

    A policy is a tree. `trainable` says which of its leaves a rule may move; everything else (a
    normaliser's statistics) is carried along untouched.
    """

    @abstractmethod
    def __call__(self, observation: Any, mask: Bool[Array, "... K"] | None = None) -> Distribution:
        """The action distribution for observations of any leading axes."""

    @abstractmethod
    def trainable(self) -> Any:
        """A tree of bools with this policy's structure."""

    @abstractmethod
    def bounded(self) -> Policy:
        """The policy with its parameters within their bounds; on a bound the derivative is that of what lies within."""


class NeuralPolicy(Policy):
    """A network on normalised observations; Gaussian policies have one log std a dimension, free of state.

    It does not fall below `least_log_std`. KL is measured in standard deviations: where they have all but vanished, a
    trust region of the usual radius lets the mean no longer move, and a policy that has to mend something cannot.
    """

    normaliser: Normaliser
    network: Network
    log_std: Float[Array, " D"] | None
    least_log_std: float = eqx.field(static=True)
    encoder: Encoder = eqx.field(static=True)
    head: Head = eqx.field(static=True)
    action_map: ActionMap = eqx.field(static=True)

    def __call__(self, observation: Any, mask: Bool[Array, "... K"] | None = None) -> Distribution:
        """The action distribution for observations of any leading axes."""
        features = self.normaliser(self.encoder(observation, self.normaliser.mean.dtype))
        return self.head(self.network(features), self.log_std, mask)

    def trainable(self) -> NeuralPolicy:
        """The network and the log standard deviation; not the normaliser."""
        everything = jax.tree.map(eqx.is_inexact_array, self)
        return eqx.tree_at(lambda p: p.normaliser, everything, jax.tree.map(lambda _: False, self.normaliser))

    def bounded(self) -> NeuralPolicy:
        """With no log standard deviation below the least one."""
        if self.log_std is None:
            return self
        within = jnp.where(self.log_std < self.least_log_std, self.least_log_std, self.log_std)
        return eqx.tree_at(lambda p: p.log_std, self, within.astype(self.log_std.dtype))

    def observed(self, observation: Any, real: Bool[Array, ...]) -> NeuralPolicy:
        """The same policy with a normaliser that has also seen these observations where `real`.

        The first layer makes up for how the normaliser moved, so that observations inside its clip lead to the same
        actions as before: what moves the policy is the rule alone, within its trust region. (That it does so matters
        most where the standard deviation has become small and a KL is quickly large.) The very first observations do
        set the scale of the network's inputs, as a policy that has learned nothing has nothing to lose; and so do all
        where the features are an image, whose pixels share their weights.
        """
        features = self.encoder(observation, self.normaliser.mean.dtype)
        normaliser = self.normaliser.observe(features, real)
        network = self.network
        if any(self.normaliser.active) and isinstance(network, Perceptron):
            network = network.with_inputs(*self.normaliser.seen_by(normaliser))
        return eqx.tree_at(lambda p: (p.normaliser, p.network), self, (normaliser, network))


class TabularPolicy(Policy):
    """One row of logits for each of N states: the softmax policies of a finite MDP.

    An observation is a state's number. With a horizon T the rows are those of time 0, then time 1, and so
    on: N = T*S and an observation is t*S + s. A logit of -inf is an action that is never taken; no step of
    a rule changes it.
    """

    logits: Float[Array, "N A"]

    @classmethod
    def of(cls, probabilities: Any) -> TabularPolicy:
        """The policy with these action probabilities [..., A], in their floating-point type, as NumPy.

        Logits are their logarithms.
        """
        rows = np.asarray(probabilities)
        with np.errstate(divide="ignore"):
            logits: Any = np.log(rows.reshape(-1, rows.shape[-1]))
        return cls(logits)

    def __call__(self, observation: Any, mask: Bool[Array, "... K"] | None = None) -> Categorical:
        """The action distribution in each of the given states."""
        return Categorical(self.logits[observation], mask)

    def trainable(self) -> TabularPolicy:
        """Every logit."""
        every: Any = True
        return TabularPolicy(every)

    def bounded(self) -> TabularPolicy:
        """The same: every logit is lawful."""
        return self

    def probabilities(self) -> Float[Array, "N A"]:
        """Action probabilities as NumPy float64; above 0 for every finite logit, also where the exponential is not."""
        logits = np.asarray(self.logits, np.float64)
        unnormalised = np.exp(logits - logits.max(axis=-1, keepdims=True))
        probabilities = unnormalised / unnormalised.sum(axis=-1, keepdims=True)
        # A probability that underflows is no impossible action: KL would be infinite for nothing.
        least = np.where(np.isneginf(logits), 0, np.finfo(np.float64).tiny)
        result: Any = np.maximum(probabilities, least)
        return result


class HostPolicy:
    """A NeuralPolicy that acts in NumPy, for environments that wait on the host for every action.

    The same functions on NumPy arrays: for networks of the usual size they are done before a compiled
    program has begun. Equal to the policy but for rounding.
    """

    def __init__(self, policy: NeuralPolicy):
        self._policy = policy = jax.tree.map(np.asarray, policy)
        self.encoder, self.head, self.action_map = policy.encoder, policy.head, policy.action_map
        self.log_std = policy.log_std
        self.dtype = policy.normaliser.mean.dtype
        # Held directly: Equinox's attributes take microseconds each.
        normaliser = policy.normaliser
        self._normaliser = (normaliser.mean, normaliser.std, normaliser.where) if any(normaliser.active) else None
        self._network = policy.network.function()

    def outputs(self, observation: Any) -> np.ndarray:
        """The network's outputs [..., K] for observations of any leading axes."""
        features = self.encoder(observation, self.dtype)
        if self._normaliser is not None:
            features = normalised(features, *self._normaliser)
        return self._network(features)

    def noise(self, leading: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
        """What chance contributes to `sample` for batches of these leading axes."""
        return self.head.noise(leading, generator).astype(self.dtype)

    def sample(self, outputs: np.ndarray, mask: np.ndarray | None, noise: np.ndarray) -> np.ndarray:
        """The actions that this noise leads to."""
        return np.asarray(self.head.action(outputs, self.log_std, mask, noise))

    def mode(self, outputs: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """The most probable actions."""
        return self.head.mode(outputs, mask)

    def distribution(self, outputs: Any, mask: Any) -> Distribution:
        """The distribution that `outputs` stand for."""
        return self.head(outputs, self.log_std, mask)


def make_policy(
    observation_space: Any,
    action_space: Any,
    network: config.Network,
    key: PRNGKeyArray,
    dtype: np.dtype | type = np.float32,
) -> NeuralPolicy:
    """A freshly initialised policy for two Gymnasium spaces.

    Raises UnsupportedSpace, and SettingError for convolutions that the observations have no room for.

    The last layer starts at a hundredth of the usual scale, so that the first policy is nearly uniform
    (categorical) or nearly centred (Gaussian) whatever it observes.
    """
    encoder = make_encoder(observation_space)
    head, action_map = make_head(action_space)
    return NeuralPolicy(
        normaliser=Normaliser.identity(encoder.normalised & network.normalise, dtype),
        network=make_network(encoder, network, head.outputs, final_gain=0.01, key=key, dtype=dtype),
        log_std=jax.device_put(np.full(head.outputs, network.log_std, dtype)) if head.gaussian else None,
        least_log_std=network.least_log_std,
        encoder=encoder,
        head=head,
        action_map=action_map,
    )


def flatten(policy: Policy) -> tuple[Float[Array, " P"], Callable[[Float[Array, " P"]], Policy]]:
    """The trainable parameters theta as one vector, and the policy as a function of theta, within its bounds.

    Everything that is not trainable is closed over as it is.
    """
    parameters, rest = eqx.partition(policy, policy.trainable())
    theta, unflatten = ravel_pytree(parameters)

    def rebuild(theta: Float[Array, " P"]) -> Policy:
        return eqx.combine(unflatten(theta), rest).bounded()

    return theta, rebuild
